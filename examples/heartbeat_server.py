"""心跳的服务端：双方都定时发心跳，也都留意对方有没有动静。

用法：python heartbeat_server.py [主机] [端口]
默认是 localhost 8083；端口写 0，由系统挑一个空闲的。
"""

import socket
import sys
import time

INTERVAL = 1  # 每隔几秒发一次心跳
LIMIT = 3  # 几秒听不到对方的任何一个字节，就当它不在了；至少是 INTERVAL 的两倍，免得误判

host = sys.argv[1] if len(sys.argv) > 1 else "localhost"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 8083

server = socket.create_server((host, port))
print("listening on", *server.getsockname(), flush=True)
connection, address = server.accept()
print("connected from", *address, flush=True)

last_heard = next_beat = time.monotonic()
try:
    while True:
        if time.monotonic() >= next_beat:
            connection.settimeout(LIMIT)  # 对方一直不收，缓冲区满了，sendall 也会卡住
            connection.sendall(b"heartbeat\r\n")
            print("send heartbeat", flush=True)
            next_beat = time.monotonic() + INTERVAL
        # 等对方的数据，但最多等到下一次该发心跳的时候（0 表示完全不等，所以取一个很小的数）
        connection.settimeout(max(next_beat - time.monotonic(), 0.001))
        try:
            data = connection.recv(1024)
        except TimeoutError as error:
            # TimeoutError 有两种，看 errno 才分得清：
            #   None 是 settimeout 的时间到了，不过是暂时没有数据；
            #   有值是连接真的断了：内核报的 ETIMEDOUT，或者 longconn 的 PeerLost（它也是 TimeoutError）。
            if error.errno is not None:
                raise
            if time.monotonic() - last_heard > LIMIT:
                print(f"lost: the client has been silent for {LIMIT} s", flush=True)
                break
            continue
        if not data:
            print("closed by the client", flush=True)
            break
        last_heard = time.monotonic()  # 任何字节都算数，不一定要是心跳
        print("received", data, flush=True)
except OSError as error:  # 放在最外层：recv 和 sendall 都可能发现连接断了
    print("lost:", error, flush=True)

connection.close()
server.close()
