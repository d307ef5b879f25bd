"""长连接的客户端：连上以后不关闭，每秒发一条消息。

用法：python long_client.py [主机] [端口] [条数]
默认是 localhost 8083；不写条数就一直发，按 Ctrl-C 结束。

想让它在对方断电、断网时也能知道，有两个办法：
    只改一行：from longconn import socket
    一行不改：python -m longconn run long_client.py
"""

import socket
import sys
import time

host = sys.argv[1] if len(sys.argv) > 1 else "localhost"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 8083
count = int(sys.argv[3]) if len(sys.argv) > 3 else None

client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
# 打开内核的保活探测。光这一句还不够：Linux 默认要空闲两小时才开始探测，
# 而只要有数据发出去还没得到确认，探测根本不会进行。
client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
client.connect((host, port))

sent = 0
while sent != count:
    # send 成功只说明数据进了本机内核的缓冲区，不说明对方收到了
    client.send(b"hello world\r\n")
    print("send data", flush=True)
    sent += 1
    time.sleep(1)

client.close()
