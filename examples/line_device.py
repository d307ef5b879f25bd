"""一台只会说“行”的设备：不认识 longconn，问一句（一行）答一句（一行）。

用法：python line_device.py [主机] [端口]
默认是 localhost 8085；端口写 0，由系统挑一个空闲的。按 Ctrl-C 结束。
采集它的程序是 line_collector.py。用 nc localhost 8085 也能跟它说话。
"""

import contextlib
import socket
import sys

host = sys.argv[1] if len(sys.argv) > 1 else "localhost"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 8085

server = socket.create_server((host, port))
print("listening on", *server.getsockname()[:2], flush=True)
try:
    while True:
        connection, address = server.accept()
        # 连接断了，接着等下一个来连的
        with connection, connection.makefile("rb") as lines, contextlib.suppress(ConnectionError):
            readings = 0
            for line in lines:
                match line.strip():
                    case b"PING":
                        answer = b"PONG"  # 这种设备自己的“心跳”：问它在不在，它答在
                    case b"READ":
                        answer = b"temperature 21.%d" % (readings % 10)
                        readings += 1
                    case _:
                        answer = b"ERROR"
                connection.sendall(answer + b"\r\n")
except KeyboardInterrupt:
    server.close()
