"""聊天室的服务端，asyncio 版：每个人一个任务；谁说话，就转给所有人。客户端还是 chat_client.py，不必改。

用法：python async_chat.py [主机] [端口]
默认是 localhost 9001；端口写 0，由系统挑一个空闲的。按 Ctrl-C 结束。
"""

import asyncio
import contextlib
import sys

import longconn
from longconn import aio

host = sys.argv[1] if len(sys.argv) > 1 else "localhost"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 9001


async def main():
    async def chat(person):
        # 一个人一个任务：他来了，这里开始；他走了，循环结束，任务也就结束
        tell_everyone(f"* {person.client_id} is here")
        try:
            async for message in person:
                tell_everyone(f"{person.client_id}: {message.decode(errors='replace')}")
        except longconn.LongConnError as error:
            tell_everyone(f"* {person.client_id} is gone: {error}")  # 不是道别，是断了，而且没有回来
        else:
            tell_everyone(f"* {person.client_id} has left")

    def tell_everyone(text):
        print(text, flush=True)
        server.broadcast(text.encode())  # 不等任何人：谁收得太慢，这一句就不给他了

    async with aio.serve(chat, (host, port), heartbeat=longconn.Heartbeat(interval=1.0)) as server:
        print("listening on", *server.address, flush=True)
        await server.serve_forever()


with contextlib.suppress(KeyboardInterrupt):  # 离开 async with 时，已经告诉每个人：服务端要走了
    asyncio.run(main())
