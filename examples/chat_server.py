"""聊天室的服务端：一个人说的话，转给所有人；谁来了、谁没了动静、谁走了、为什么走，也告诉所有人。

用法：python chat_server.py [主机] [端口]
默认是 localhost 9001；端口写 0，由系统挑一个空闲的。按 Ctrl-C 结束。
"""

import sys
import threading

import longconn

host = sys.argv[1] if len(sys.argv) > 1 else "localhost"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 9001

# 连接断了，原因在 Event 的 cause 里
WHY = {
    "ended": "the program ended or was killed",
    "reset": "the connection was reset",
    "unreachable": "the network or the power failed",
    "frozen": "the computer answers, the program doesn't",
}


def news(event):
    # 连接的每一次变化（Event），翻译成一句话
    match event.state:
        case "open":  # 第一次来；断了又连上，或者沉默之后又有了动静，也是 open
            return "is here"
        case "suspect":
            return "has fallen silent"
        case "reconnecting":  # 断了；留着他的会话等一分钟，回来了接着聊，没收到的话一句不少
            return f"is gone: {WHY.get(event.cause, event.cause)}"
        case _:
            return "has left" if event.cause == "closed" else "has not come back"


def tell_everyone(server, text):
    print(text + "\n", end="", flush=True)  # 一次写完一整行：两个线程都在打印，免得搅在一起
    server.broadcast(text.encode())  # 不等任何人：谁收得太慢，这一句就不给他了


def watch(server):
    for person, event in server.events():
        tell_everyone(server, f"* {person.client_id} {news(event)}")


# 每秒一次心跳，对方没了动静，两秒半之内就知道；不用谁开口说话
with longconn.LongServer((host, port), heartbeat=longconn.Heartbeat(interval=1.0)) as server:
    print("listening on", *server.address, flush=True)
    threading.Thread(target=watch, args=(server,), daemon=True).start()
    try:
        for person, message in server.messages():  # 来自所有人的消息，都在这一个循环里
            tell_everyone(server, f"{person.client_id}: {message.decode(errors='replace')}")
    except KeyboardInterrupt:
        pass  # 离开 with 时，会告诉每个人：服务端要走了
