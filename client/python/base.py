"""QMP client for qblockd (and anything else that speaks QMP), in one file without dependencies.

    import asyncio
    from qblockd_client import connect

    async def main():
        async with await connect('unix:/run/qblockd/qmp.sock') as client:
            await client.blockdev_add(driver='null-co', node_name='n', size=1048576)
            print(await client.query_named_block_nodes(flat=True))

    asyncio.run(main())

Every command is a method: `blockdev-add` is `blockdev_add`, and underscores in the names of arguments stand for dashes.
Inside of arguments names are as QMP has them: {'node-name': 'n'}. Python 3.9 and newer.

Made from the schema by the build; the classes and methods below the line "Generated" are not to be edited.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, AsyncIterator, Dict, List, Optional, TypedDict, Union

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
MAX_QUEUED_EVENTS = 65536


class QmpError(Exception):
    """The daemon's answer is an error; `error_class` is GenericError, DeviceNotFound and the like."""

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(description)
        self.command = command
        self.error_class = error_class


class ConnectionLost(Exception):
    """The connection ended before the answer came: whether the command was carried out is not known."""


class JobError(Exception):
    """A job failed, was cancelled, or is not there."""

    def __init__(self, job_id: str, message: str, cancelled: bool = False) -> None:
        super().__init__(f"Job '{job_id}': {message}")
        self.job_id = job_id
        self.cancelled = cancelled


class Event(TypedDict):
    """An event: its name, its data, and when it happened."""

    event: str
    data: Dict[str, Any]
    timestamp: Dict[str, int]


class EventStream:
    """Events of some names (all when none is given), from its creation on: `async for event in stream`."""

    def __init__(self, client: 'BaseClient', names: 'tuple[str, ...]') -> None:
        self._client = client
        self._names = names
        self._queue: 'asyncio.Queue[Any]' = asyncio.Queue()
        client._streams.add(self)

    def _push(self, item: Any) -> None:
        if isinstance(item, BaseException) or item is None:
            self._queue.put_nowait(item)
        elif not self._names or item['event'] in self._names:
            if self._queue.qsize() < MAX_QUEUED_EVENTS:
                self._queue.put_nowait(item)
            else:
                self.close()
                self._queue.put_nowait(RuntimeError(f'More than {MAX_QUEUED_EVENTS} events were not read'))

    def close(self) -> None:
        """Takes no more events."""
        self._client._streams.discard(self)

    def __aiter__(self) -> 'AsyncIterator[Event]':
        return self

    async def __anext__(self) -> Event:
        item = await self._queue.get()
        if item is None:
            self._queue.put_nowait(None)
            raise StopAsyncIteration
        if isinstance(item, BaseException):
            self._queue.put_nowait(None)
            raise item
        return item


class Job:
    """A job by its id, which need not exist yet."""

    def __init__(self, client: 'BaseClient', job_id: str) -> None:
        self.id = job_id
        self._client = client

    async def info(self) -> Optional[Dict[str, Any]]:
        """What query-jobs tells of it; None when there is no such job."""
        jobs = await self._client.execute('query-jobs')
        return next((job for job in jobs if job['id'] == self.id), None)

    async def finished(self) -> None:
        """Waits for the end, and dismisses the job where it waits for that. Raises JobError when it failed."""
        await self._wait(None)

    async def ready(self) -> None:
        """Waits until a mirror or an active commit has caught up."""
        await self._wait(('ready', 'standby'))

    async def pending(self) -> None:
        """Waits until a job made with auto-finalize=false waits for job-finalize."""
        await self._wait(('pending',))

    async def pause(self) -> None:
        await self._client.execute('job-pause', {'id': self.id})

    async def resume(self) -> None:
        await self._client.execute('job-resume', {'id': self.id})

    async def cancel(self) -> None:
        await self._client.execute('job-cancel', {'id': self.id})

    async def complete(self) -> None:
        await self._client.execute('job-complete', {'id': self.id})

    async def finalize(self) -> None:
        await self._client.execute('job-finalize', {'id': self.id})

    async def _wait(self, wanted: 'Optional[tuple[str, ...]]') -> None:
        events = self._client.events('JOB_STATUS_CHANGE', 'BLOCK_JOB_COMPLETED', 'BLOCK_JOB_CANCELLED')
        error: Optional[str] = None
        cancelled = False
        try:
            job = await self.info()
            if job is None:
                raise JobError(self.id, 'There is no such job (any more)')
            while True:
                status = job['status'] if job else 'concluded'
                if wanted and status in wanted:
                    return
                if status == 'concluded':
                    if job and wanted is None:
                        await self._client.execute('job-dismiss', {'id': self.id})
                    error = (job or {}).get('error') or error
                    if error or cancelled or wanted:
                        raise JobError(self.id, error or ('It was cancelled' if cancelled else 'It has ended'), cancelled)
                    return
                job, error, cancelled = await self._next(events, job, error, cancelled)
        finally:
            events.close()

    async def _next(self, events: EventStream, job: Any, error: Optional[str], cancelled: bool) -> Any:
        """The job after the next event of its own; None when it is gone."""
        async for event in events:
            data = event['data']
            if event['event'] == 'JOB_STATUS_CHANGE':
                if data['id'] != self.id:
                    continue
                if data['status'] in ('concluded', 'null'):
                    found = await self.info()
                    return (found if found and found['status'] == 'concluded' else None), error, cancelled
                return {**job, 'status': data['status']}, error, cancelled
            if data.get('device') == self.id:
                cancelled = event['event'] == 'BLOCK_JOB_CANCELLED'
                error = data.get('error')
        raise ConnectionLost('The client was closed')


class BaseClient:
    """One negotiated connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._pending: 'Dict[int, tuple[str, asyncio.Future[Any]]]' = {}
        self._streams: 'set[EventStream]' = set()
        self._last_id = 0
        self._task: 'Optional[asyncio.Task[None]]' = None
        self._ended: Optional[BaseException] = None
        self.greeting: Dict[str, Any] = {}

    async def _negotiate(self) -> None:
        try:
            self.greeting = json.loads(await self._reader.readuntil(b'\n'))['QMP']
        except (ValueError, KeyError, TypeError, asyncio.IncompleteReadError) as error:
            self._writer.close()
            raise ConnectionLost('What answers does not speak QMP') from error
        self._task = asyncio.ensure_future(self._receive())
        capabilities = [name for name in self.greeting['capabilities'] if name == 'oob']
        await self.execute('qmp_capabilities', {'enable': capabilities})

    async def _receive(self) -> None:
        failure: Optional[BaseException] = None
        try:
            while True:
                line = await self._reader.readuntil(b'\n')
                if line.strip():
                    self._message(json.loads(line))
        except asyncio.CancelledError:
            raise
        except (asyncio.IncompleteReadError, ConnectionError):
            failure = ConnectionLost('The connection to the daemon was lost')
        except Exception as error:  # nothing after nonsense can be trusted to be an answer
            failure = ConnectionLost(f'What answers does not speak QMP: {error}')
        finally:
            self._end(failure)

    def _message(self, message: Dict[str, Any]) -> None:
        if 'event' in message:
            for stream in list(self._streams):
                stream._push({'event': message['event'], 'data': message.get('data', {}), 'timestamp': message['timestamp']})
            return
        found = self._pending.pop(message.get('id'), None)  # type: ignore[arg-type]
        if found is None:
            return
        command, future = found
        if future.done():
            return  # nobody waits any more
        if 'error' in message:
            future.set_exception(QmpError(command, message['error']['class'], message['error']['desc']))
        else:
            future.set_result(message.get('return'))

    def _end(self, failure: Optional[BaseException]) -> None:
        if self._ended is not None:
            return
        self._ended = failure or ConnectionLost('The client is closed')
        for _command, future in self._pending.values():
            if not future.done():
                future.set_exception(self._ended)
        self._pending.clear()
        for stream in list(self._streams):
            stream._push(failure)
        self._writer.close()

    async def execute(self, command: str, arguments: Optional[Dict[str, Any]] = None, *, oob: bool = False) -> Any:
        """Runs a command by its name. Raises QmpError or ConnectionLost."""
        if self._ended is not None:
            raise self._ended
        self._last_id += 1
        number = self._last_id
        future: 'asyncio.Future[Any]' = asyncio.get_running_loop().create_future()
        self._pending[number] = (command, future)
        message: Dict[str, Any] = {'exec-oob' if oob else 'execute': command, 'id': number}
        if arguments is not None:
            message['arguments'] = arguments
        self._writer.write(json.dumps(message).encode() + b'\n')
        await self._writer.drain()
        return await future

    def events(self, *names: str) -> EventStream:
        """Events of these names (all when none is given) from now on."""
        return EventStream(self, names)

    def job(self, job_id: str) -> Job:
        return Job(self, job_id)

    async def close(self) -> None:
        """Ends the connection."""
        if self._task is not None:
            self._task.cancel()
            try:
                await self._task
            except asyncio.CancelledError:
                pass
        self._end(None)
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            pass

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()


async def connect(address: str) -> 'Client':
    """Connects to "unix:PATH", a path, or "tcp:HOST:PORT"."""
    if address.startswith('tcp:'):
        host, _, port = address[len('tcp:'):].rpartition(':')
        reader, writer = await asyncio.open_connection(host.strip('[]') or 'localhost', int(port), limit=MAX_MESSAGE_BYTES)
    else:
        path = address[len('unix:'):] if address.startswith('unix:') else address
        reader, writer = await asyncio.open_unix_connection(path, limit=MAX_MESSAGE_BYTES)
    client = Client(reader, writer)
    await client._negotiate()
    return client


def _arguments(given: Dict[str, Any], more: Dict[str, Any]) -> Dict[str, Any]:
    """What was given, under the names that QMP has for it."""
    every = {name.rstrip('_').replace('_', '-'): value for name, value in {**more, **given}.items() if value is not _UNSET}
    return every


class _Unset:
    def __repr__(self) -> str:
        return '(not given)'


_UNSET: Any = _Unset()
