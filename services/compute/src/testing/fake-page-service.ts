/** The server's end of a page service connection for tests: the real handshake, then every frame of the client. */
import assert from 'node:assert/strict';
import { type AddressInfo, type Server, type Socket } from 'node:net';
import { type Frame, FrameParser, MSG, encodeFrame, tryDecodeHello } from '@lakebase/api';

const FRAME_BYTES_MAX = 65_536;

/** The client's hello has to come in one piece. */
export function servePageFrames(socket: Socket, onFrame: (frame: Frame) => void): void {
  const parser = new FrameParser(FRAME_BYTES_MAX);
  let hello = false;
  socket.on('error', () => {});
  socket.on('data', (chunk) => {
    if (hello) return parser.push(chunk, onFrame);
    const decoded = tryDecodeHello(chunk);
    assert.ok(decoded);
    hello = true;
    for (const part of encodeFrame(MSG.HELLO_OK, 0)) socket.write(part);
    if (chunk.length > decoded.consumed) parser.push(chunk.subarray(decoded.consumed), onFrame);
  });
}

/** Resolves with the port. */
export function listening(server: Server): Promise<number> {
  return new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve((server.address() as AddressInfo).port)));
}
