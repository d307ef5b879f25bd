"""一台设备：连上网关，一直连着，每秒报一个数；网断了、网关重启了，自己连回去，一个数也不丢。

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


def on_event(event):
    # 断了、连上了，都只是一次变化；程序照常往下走，没送到的会补送
    if event.state == "reconnecting":
        print("the gateway is lost:", event.error, flush=True)  # 一句话说清楚：静了多久、还有谁在应答
    elif event.replayed is not None or event.fresh:
        print("the gateway is back", flush=True)


with longconn.connect(
    (host, port), client_id=name, heartbeat=longconn.Heartbeat(interval=1.0), on_event=on_event
) as gateway:
    sent = 0
    try:
        while sent != count:
            if sent:
                time.sleep(1)
            gateway.send(b"%d" % sent)  # 一次 send 是一条完整的消息，对方 recv 到的也是这一条
            sent += 1
            try:
                print("answer", gateway.recv(timeout=10), flush=True)
            except TimeoutError:
                print("no answer yet", flush=True)  # 正在重连；或者网关收下了，没来得及回答就没了
    except longconn.PeerClosed as goodbye:
        print("the gateway said:", goodbye.reason, flush=True)
    except longconn.SessionLost as lost:
        # 网关忽然没了，又不认得我们了：这几个数，不知道它收没收到
        print("these may be lost:", lost.undelivered, flush=True)
    except KeyboardInterrupt:
        pass
