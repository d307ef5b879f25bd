"""聊天室的客户端：打一行字，回车，所有人都看得到。

用法：python chat_client.py [名字] [主机] [端口]
默认名字是 guest，连 localhost 9001。按 Ctrl-D 离开。
"""

import sys
import threading

import longconn

name = sys.argv[1] if len(sys.argv) > 1 else "guest"
host = sys.argv[2] if len(sys.argv) > 2 else "localhost"
port = int(sys.argv[3]) if len(sys.argv) > 3 else 9001


def on_event(event):
    # 连接断了会自己重连，没送到的话会补送；这里只是告诉人一声
    if event.state == "reconnecting":
        print("* the server is lost:", event.error, flush=True)  # 服务端没了，不用等到自己说话才知道
    elif event.replayed is not None or event.fresh:
        print("* the server is back", flush=True)


def listen(room):
    try:
        for message in room:  # 断线、重连，这个循环都不知道；对方正常道别，它就正常结束
            print(message.decode(), flush=True)
    except longconn.PeerClosed as goodbye:
        print("the server said:", goodbye.reason, flush=True)
    except longconn.AlreadyClosed:
        pass  # 是我们自己先走的


with longconn.connect(
    (host, port),
    client_id=name,
    heartbeat=longconn.Heartbeat(interval=1.0),
    on_session_lost="resend",  # 服务端忽然没了，不知道哪几句它收到了：再说一遍，宁可重复，不可丢掉
    on_event=on_event,
) as room:
    threading.Thread(target=listen, args=(room,), daemon=True).start()  # 一个线程听，一个线程说
    for line in sys.stdin:
        try:
            room.send(line.rstrip("\n").encode())
        except longconn.LongConnError:
            break  # 听的那个线程已经说了为什么
