"""A stand-in for the server: answers after a time, one request after the other, and errs on request.

    python stub_server.py bundle=B port=P workers=1 events=E

The bundle's name says how: `seconds=0.02,error_every=5`. Keys: seconds (of an answer), error_every (that
answer is a 503), cut_every (that answer is cut off), missing_item (answers have one item too few),
child (a process of its own, which lives as long), fails (ends at once).
"""

import asyncio
import json
import subprocess
import sys
import time


def settings_of(arguments: list[str]) -> dict[str, str]:
    return dict(argument.split("=", 1) for argument in arguments)


async def serve(port: int, behaviour: dict[str, float]) -> None:
    one_at_a_time = asyncio.Lock()
    num_asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_asked
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                path = lines[0].split()[1]
                length = next((int(s[16:]) for s in lines if s.startswith("Content-Length: ")), 0)
                body = json.loads(await reader.readexactly(length) or b"{}")
                status, content = 200, {"version": "stub-1-00000000"}
                if path in ("/v1/score", "/v1/recommend"):
                    num_asked += 1
                    async with one_at_a_time:
                        await asyncio.sleep(behaviour.get("seconds", 0))
                    if num_asked % behaviour.get("cut_every", 1e9) == 0:
                        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
                        break
                    if num_asked % behaviour.get("error_every", 1e9) == 0:
                        status = 503
                    num_items = len(body["items"]) if path == "/v1/score" else body["k"]
                    num_items -= int(behaviour.get("missing_item", 0))
                    content["items"] = [{"id": f"i{n}"} for n in range(num_items)]
                text = json.dumps(content).encode()
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(text)))
                writer.write(text)
        except asyncio.IncompleteReadError:
            num_asked += 0  # the client has closed its connection
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    given = settings_of(sys.argv[1:])
    behaviour = given["bundle"].strip("'")  # as Hydra reads texts
    asked = {k: float(v) for k, v in settings_of(behaviour.split(",")).items()}
    print("stub: starting", flush=True)
    if "fails" in asked:
        sys.exit("stub: no such bundle")
    if "child" in asked:
        subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({asked['child']})"])
        ends = time.process_time() + 0.3
        while time.process_time() < ends:
            sum(range(1000))
    asyncio.run(serve(int(given["port"]), asked))
