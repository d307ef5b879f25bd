"""预先派生进程的服务端：几个进程守着同一个端口，各用各的 CPU；死掉一个就补上一个，重启时一条消息也不丢。

用法：python prefork.py [主机] [端口] [进程数]
默认是 localhost 9000 和 2 个进程；端口写 0，由系统挑一个空闲的。

    kill -TERM 主进程    告诉每个客户端要走了，等它们收完，全部退出
    kill -HUP 主进程     一个一个地换成新进程：先开新的，再关旧的；客户端自己连过去
    kill -KILL 工作进程  它死了，主进程补上一个；客户端自己连过去

客户端用 longconn.connect(地址, on_session_lost="resend")：会话随着进程一起没了，没被收走的，会重新发给接班的进程。
"""

import os
import signal
import socket
import sys

import longconn

host = sys.argv[1] if len(sys.argv) > 1 else "localhost"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 9000
count = int(sys.argv[3]) if len(sys.argv) > 3 else 2

master = os.getpid()
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}


def say(*words):
    # 一次写完一整行：几个进程都在打印，免得搅在一起
    print(" ".join(map(str, words)) + "\n", end="", flush=True)


def work(address, ready):
    """一个工作进程。服务端和连接都在 fork 之后才建：它们属于建它们的那个进程。"""
    is_stopping = False

    def stop(_number, _frame):
        # 只记下来，不抛异常：手上这条消息要先答完，收下了却没回答的，对方是不会再发一遍的
        nonlocal is_stopping
        is_stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # 终端里的 Ctrl-C 由主进程来管
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    server = longconn.LongServer(
        address, reuse_port=True, heartbeat=longconn.Heartbeat(interval=1.0), when_full="raise"
    )
    say("worker", os.getpid(), "is ready")
    os.write(ready, b"!")
    while not is_stopping and os.getppid() == master:  # 主进程要是没了，也不独自留下
        try:
            for connection, message in server.messages(timeout=0.2):
                try:
                    connection.send(b"%d has %s" % (os.getpid(), message))
                except longconn.LongConnError as error:  # 它走了，或者一直不收：不能让其余的跟着等
                    say("not answered:", error)
                if is_stopping:
                    break
        except TimeoutError:
            pass  # 暂时没有消息，再看看要不要停
    # 告诉每个客户端：这就要走了，马上可以回来（端口还在，接班的也在）；已经发出的，等它们收完
    server.close(drain=5.0, reason="this worker is being replaced", retry_after=0.0)


def start(address):
    """派生一个工作进程，等到它守住了端口。"""
    wait_for, ready = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            work(address, ready)
        except BaseException as error:
            say("worker", os.getpid(), "failed:", repr(error))
            os._exit(1)
        os._exit(0)
    os.close(ready)
    is_up = os.read(wait_for, 1)  # 它要是起不来就死了，这里读到的是空的
    os.close(wait_for)
    if not is_up:
        raise SystemExit("a worker doesn't come up")
    return process


def end(process):
    """请它走，等它走完。"""
    os.kill(process, signal.SIGTERM)
    os.waitpid(process, 0)


# 占住端口，但是不 listen：连接只会分给工作进程；哪怕它们一时全死了，别的程序也抢不走这个端口
info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
holder = socket.socket(info[0], info[1])
holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
holder.bind(info[4])
address = holder.getsockname()[:2]
say("listening on", *address)

signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # 由下面的 sigwait 一个一个地取
workers = [start(address) for _ in range(count)]
say("master", master, "is ready")
while True:
    match signal.sigwait(SIGNALS):
        case signal.SIGTERM | signal.SIGINT:
            break
        case signal.SIGHUP:
            for old in list(workers):
                workers.append(start(address))
                workers.remove(old)
                end(old)
            say("all workers are new")
        case signal.SIGCHLD:
            # 几个子进程同时死，信号可能只来一次
            for process in list(workers):
                gone, status = os.waitpid(process, os.WNOHANG)
                if gone:
                    workers.remove(process)
                    workers.append(start(address))
                    say("worker", process, "ended with", os.waitstatus_to_exitcode(status), "and is replaced")

for process in workers:
    os.kill(process, signal.SIGTERM)  # 大家一起收尾，不必一个等一个
codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in workers]
holder.close()
say("all workers have ended")
sys.exit(max(map(abs, codes)))
