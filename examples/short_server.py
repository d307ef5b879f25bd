"""短连接的服务端：每个连接只办一件事，收一条、答一条、关闭，再等下一个。

用法：python short_server.py [主机] [端口]
默认是 localhost 8083；端口写 0，由系统挑一个空闲的。按 Ctrl-C 结束。
"""

import socket
import sys

host = sys.argv[1] if len(sys.argv) > 1 else "localhost"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 8083

server = socket.create_server((host, port))  # 相当于 socket()、bind()、listen() 三步
print("listening on", *server.getsockname(), flush=True)

while True:
    connection, address = server.accept()
    with connection:  # 离开 with 时自动关闭
        connection.settimeout(5)  # 连上来却不说话的客户端，不能让后面的人一直等
        try:
            data = connection.recv(1024)
            connection.sendall(b"got " + data)
        except OSError as error:  # 这一个连接出了错，不影响下一个
            print("failed:", error, flush=True)
        else:
            print("received", data, flush=True)
