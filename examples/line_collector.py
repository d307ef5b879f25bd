"""采集程序：连上一台只会说“行”的设备，每秒读一个数；设备没了，说得出为什么。

用法：python line_collector.py [主机] [端口] [条数]
默认连 localhost 8085 的 line_device.py；不写条数就一直读，按 Ctrl-C 结束。
"""

import sys
import time

import longconn

host = sys.argv[1] if len(sys.argv) > 1 else "localhost"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 8085
count = int(sys.argv[3]) if len(sys.argv) > 3 else None

# 每秒替我们问一次 PING，等它的 PONG；PONG 不会混到 recv 里来。两秒半什么都没听到，就是没了
heartbeat = longconn.PlainHeartbeat(interval=1.0, send=b"PING", expect=b"PONG", limit=2.5)
with longconn.connect((host, port), framing="lines", heartbeat=heartbeat) as device:
    device.settimeout(10)
    read = 0
    try:
        while read != count:
            if read:
                time.sleep(1)
            device.send(b"READ")  # 一次 send 是一行，行尾会补上
            line = device.recv()  # 收到的也是一整行，带着行尾
            if not line:  # 空的 bytes 表示设备那头正常关闭了连接
                print("the device has closed", flush=True)
                break
            print(line.decode().strip(), flush=True)
            read += 1
    except longconn.PeerLost as lost:
        print("the device is lost:", lost.cause, flush=True)  # frozen、unreachable、reset……
    except KeyboardInterrupt:
        pass
