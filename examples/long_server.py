"""长连接的服务端：接待一个客户端，连接一直开着，来什么就打印什么。

用法：python long_server.py [主机] [端口]
默认是 localhost 8083；端口写 0，由系统挑一个空闲的。

想让它在对方断电、断网时也能知道，有两个办法：
    只改一行：from longconn import socket
    一行不改：python -m longconn run long_server.py
"""

import socket
import sys

host = sys.argv[1] if len(sys.argv) > 1 else "localhost"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 8083

server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # 重启程序时，不用等旧端口释放
server.bind((host, port))
server.listen(1)
print("listening on", *server.getsockname(), flush=True)

connection, address = server.accept()  # 等客户端连上来
print("connected from", *address, flush=True)
while True:
    # 没有数据就一直等在这一行。客户端那头要是断了电、拔了网线，
    # 标准库的 socket 不会得到任何通知，会永远等下去。
    data = connection.recv(1024)
    if not data:  # 空的 bytes 表示对方正常关闭了连接
        break
    print("received", data, flush=True)  # 长连接：收完一条不关闭，接着等下一条

print("closed by the client", flush=True)
connection.close()
server.close()
