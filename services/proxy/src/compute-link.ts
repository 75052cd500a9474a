/** Opens a session at a compute for a client that we have authenticated. The compute trusts the proxy's account (peer authentication),
 *  so there is no password round. Reads up to ReadyForQuery; from there the bytes are relayed and never parsed again.
 *
 *  Invariant: nothing reaches the client from here, so a failure that a restart of the compute can heal may be tried again. */
import { type Socket, connect } from 'node:net';
import { LakebaseError } from '@lakebase/base';
import { MessageParser, PROTOCOL_3_2, type PgError, decodeBackend, encodeStartupMessage, fatal, unixSocketPath } from '@lakebase/pg-wire';
import type { Route } from './directory.ts';

export interface ComputeLink {
  readonly socket: Socket;
  readonly pid: number;
  readonly key: Buffer;
  /** Parameters and notices for the client, as the compute framed them. */
  readonly greeting: Buffer;
  /** ReadyForQuery and whatever came with it. */
  readonly ready: Buffer;
}

/** The compute is not there, is starting or is stopping: ask the Manager and try again. */
export class ComputeGone extends Error {
  override readonly name = 'ComputeGone';
}

/** The compute's own refusal, to be passed on. */
export class ComputeRefused extends Error {
  override readonly name = 'ComputeRefused';
  /** The ErrorResponse as it came. */
  readonly frame: Buffer;
  readonly error: PgError;
  constructor(frame: Buffer, error: PgError) {
    super(error.message);
    this.frame = frame;
    this.error = error;
  }
}

/** Everything before ReadyForQuery together. */
const GREETING_BYTES_MAX = 1 << 20;
const RETRY_STATES: ReadonlySet<string> = new Set(['57P01', '57P02', '57P03']);

export function connectCompute(
  route: Route,
  parameters: readonly (readonly [string, string])[],
  protocol: number,
  signal: AbortSignal,
): Promise<ComputeLink> {
  return new Promise((resolve, reject) => {
    const path = unixSocketPath(route.socketDir, route.port);
    const socket = connect({ path });
    const parser = new MessageParser({ limit: GREETING_BYTES_MAX });
    const greeting: Buffer[] = [];
    let greetingBytes = 0,
      pid = 0,
      key: Buffer = Buffer.alloc(0);

    const settle = (): void => {
      socket.off('data', onData).off('close', onClose).off('connect', onConnect);
      signal.removeEventListener('abort', onAbort);
    };
    const fail = (error: unknown): void => {
      settle();
      socket.destroy();
      reject(error as Error);
    };
    const onConnect = (): void => void socket.write(encodeStartupMessage(parameters, protocol));
    const onClose = (): void => fail(new ComputeGone(`the compute at ${path} closed the connection`));
    const onAbort = (): void => fail(signal.reason);
    const onData = (chunk: Buffer): void => {
      try {
        parser.push(chunk);
        for (let m = parser.next(); m !== undefined; m = parser.next()) {
          if (take(m.type, m.body)) return;
        }
      } catch (error) {
        fail(error);
      }
    };
    /** True when the session is ready or refused. */
    const take = (type: number, body: Buffer): boolean => {
      if (type === 0x53 || type === 0x4e) {
        greetingBytes += body.length;
        if (greetingBytes > GREETING_BYTES_MAX) throw new LakebaseError('CORRUPT', 'the compute sends no end of start-up messages');
        greeting.push(frame(type, body));
        return false;
      }
      const m = decodeBackend(type, body);
      switch (m.kind) {
        case 'authenticationOk':
        case 'negotiateProtocolVersion':
          return false;
        case 'backendKeyData':
          pid = m.pid;
          key = Buffer.from(m.key);
          return false;
        case 'readyForQuery': {
          settle();
          socket.pause();
          const rest = parser.takeRest();
          resolve({ socket, pid, key, greeting: Buffer.concat(greeting), ready: Buffer.concat([frame(type, body), rest]) });
          return true;
        }
        case 'error': {
          const error = fatal(m.fields.sqlstate, m.fields.message);
          fail(RETRY_STATES.has(m.fields.sqlstate) ? new ComputeGone(m.fields.message) : new ComputeRefused(frame(type, body), error));
          return true;
        }
        default:
          throw new LakebaseError(
            'UNAVAILABLE',
            'the compute wants a password from the proxy; its pg_hba.conf must trust the proxy by peer authentication',
          );
      }
    };
    socket.on('connect', onConnect).on('data', onData).on('close', onClose);
    socket.on('error', ignore);
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
  });
}

/** `close` follows an error and says it all. Not a closure: it stays on the socket for the whole session. */
function ignore(): void {}

function frame(type: number, body: Buffer): Buffer {
  const out = Buffer.allocUnsafe(5 + body.length);
  out[0] = type;
  out.writeInt32BE(4 + body.length, 1);
  body.copy(out, 5);
  return out;
}

/** The newest protocol that client and compute may share; a compute that knows less says so and we drop that message. */
export const computeProtocol = (negotiated: number): number => Math.min(negotiated, PROTOCOL_3_2);
