"""心跳的客户端：双方都定时发心跳，也都留意对方有没有动静。

用法：python heartbeat_client.py [主机] [端口] [次数]
默认是 localhost 8083；次数是听到几次以后结束，不写就一直运行，按 Ctrl-C 结束。
"""

import socket
import sys
import time

INTERVAL = 1  # 每隔几秒发一次心跳
LIMIT = 3  # 几秒听不到对方的任何一个字节，就当它不在了；至少是 INTERVAL 的两倍，免得误判

host = sys.argv[1] if len(sys.argv) > 1 else "localhost"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 8083
count = int(sys.argv[3]) if len(sys.argv) > 3 else None

client = socket.create_connection((host, port), timeout=5)
heard = 0
last_heard = next_beat = time.monotonic()
try:
    while heard != count:
        if time.monotonic() >= next_beat:
            client.settimeout(LIMIT)
            client.sendall(b"heartbeat\r\n")
            print("send heartbeat", flush=True)
            next_beat = time.monotonic() + INTERVAL
        client.settimeout(max(next_beat - time.monotonic(), 0.001))
        try:
            data = client.recv(1024)
        except TimeoutError as error:
            if error.errno is not None:  # 连接真的断了，不是 settimeout 到点；为什么看 errno，见 heartbeat_server.py
                raise
            if time.monotonic() - last_heard > LIMIT:
                print(f"lost: the server has been silent for {LIMIT} s", flush=True)
                break
            continue
        if not data:
            print("closed by the server", flush=True)
            break
        last_heard = time.monotonic()
        heard += 1
        print("received", data, flush=True)
except OSError as error:
    print("lost:", error, flush=True)

client.close()
