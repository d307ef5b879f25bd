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


def listen(room):
    try:
        for message in room:  # 对方正常道别，循环就正常结束
            print(message.decode(), flush=True)
    except longconn.PeerClosed as goodbye:
        print("the server said:", goodbye.reason, flush=True)
    except longconn.PeerLost as lost:
        print("the server is lost:", lost, flush=True)  # 服务端没了，不用等到自己说话才知道
    except longconn.AlreadyClosed:
        pass  # 是我们自己先走的


with longconn.connect((host, port), client_id=name, heartbeat=longconn.Heartbeat(interval=1.0)) as room:
    threading.Thread(target=listen, args=(room,), daemon=True).start()  # 一个线程听，一个线程说
    for line in sys.stdin:
        try:
            room.send(line.rstrip("\n").encode())
        except longconn.LongConnError:
            break  # 听的那个线程已经说了为什么
