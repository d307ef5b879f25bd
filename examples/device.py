"""一台设备：连上网关，一直连着，每秒报一个数。

用法：python device.py [主机] [端口] [名字] [条数]
默认连 localhost 9000；不写条数就一直报，按 Ctrl-C 结束。
"""

import sys
import time

import longconn

host = sys.argv[1] if len(sys.argv) > 1 else "localhost"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 9000
name = sys.argv[3] if len(sys.argv) > 3 else "device-1"
count = int(sys.argv[4]) if len(sys.argv) > 4 else None

with longconn.connect((host, port), client_id=name, heartbeat=longconn.Heartbeat(interval=1.0)) as gateway:
    gateway.settimeout(10)
    sent = 0
    try:
        while sent != count:
            if sent:
                time.sleep(1)
            gateway.send(b"%d" % sent)  # 一次 send 是一条完整的消息，对方 recv 到的也是这一条
            print("answer", gateway.recv(), flush=True)
            sent += 1
    except longconn.PeerClosed as goodbye:
        print("the gateway said:", goodbye.reason, flush=True)
    except longconn.PeerLost as lost:
        print("the gateway is lost:", lost, flush=True)  # 一句话说清楚：静了多久、还有谁在应答
    except KeyboardInterrupt:
        pass
