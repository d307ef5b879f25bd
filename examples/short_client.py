"""短连接的客户端：连接、发送、接收、关闭，过一秒再来一遍。

用法：python short_client.py [主机] [端口] [次数]
默认是 localhost 8083；不写次数就一直重复，按 Ctrl-C 结束。
"""

import socket
import sys
import time

host = sys.argv[1] if len(sys.argv) > 1 else "localhost"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 8083
count = int(sys.argv[3]) if len(sys.argv) > 3 else None

done = 0
while done != count:
    # 每次都重新连接：对方还在不在，一连就知道，所以短连接不需要心跳；
    # 代价是每次都要多一个来回的握手。
    with socket.create_connection((host, port), timeout=5) as client:
        client.sendall(b"hello world\r\n")
        print("received", client.recv(1024), flush=True)
    done += 1
    time.sleep(1)
