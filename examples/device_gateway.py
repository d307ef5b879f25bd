"""设备网关：一个循环接待所有设备；谁来了、谁没了动静、为什么没了，都说得出来。

用法：python device_gateway.py [主机] [端口]
默认是 localhost 9000；端口写 0，由系统挑一个空闲的。按 Ctrl-C 结束。
"""

import sys
import threading

import longconn

host = sys.argv[1] if len(sys.argv) > 1 else "localhost"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 9000


def say(*words):
    # 一次写完一整行：两个线程都在打印，免得搅在一起
    print(" ".join(map(str, words)) + "\n", end="", flush=True)


def report(server):
    for device, event in server.events():
        # reconnecting：断了，它的会话留着等一分钟，回来了接着走；closed：道了别，或者没有回来。
        # cause 说为什么：closed（对方道了别）、ended（进程没了）、
        # unreachable（断网、断电）、frozen（对方的系统还在，程序停住了）……
        say("device", device.client_id, event.state, event.cause or "")


# 每秒一次心跳；对方没了动静，两秒半之内就知道
with longconn.LongServer((host, port), heartbeat=longconn.Heartbeat(interval=1.0)) as server:
    say("listening on", *server.address)
    threading.Thread(target=report, args=(server,), daemon=True).start()
    try:
        for device, message in server.messages():  # 不管连着几台还是几千台，都是这一个循环
            say("device", device.client_id, "says", message)
            try:
                device.send(b"got " + message, timeout=0)  # 不等：一台收得慢，不能让其余的跟着等
            except (longconn.LongConnError, TimeoutError) as error:
                say("device", device.client_id, "gets no answer:", error)  # 说完就走了，或者一直不收
    except KeyboardInterrupt:
        pass  # 离开 with 时，会告诉每台设备：服务端要走了
