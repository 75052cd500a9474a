/** One client connection, from its first byte to the relay:
 *
 *      start-up (TLS, cancel) -> route -> authenticate -> wake, client held -> compute session -> relay
 *
 *  Invariants: one deadline covers everything up to the end of authentication, another one the wait for the compute; every refusal is
 *  an ErrorResponse with an SQLSTATE where the client can read one; what the set-up used is free once the relay runs. */
import { type Socket, connect } from 'node:net';
import { TLSSocket } from 'node:tls';
import { LakebaseError, type Logger, backoffDelay, errorMessage, sleep } from '@lakebase/base';
import {
  type CancelRequest,
  PgError,
  ProtocolError,
  type StartupMessage,
  encodeAuthenticationOk,
  encodeBackendKeyData,
  encodeCancelRequest,
  encodeError,
  encodeNegotiateProtocolVersion,
  fatal,
  needsNegotiation,
  unixSocketPath,
} from '@lakebase/pg-wire';
import { AuthenticationFailed, authenticate } from './authentication.ts';
import type { CancelRegistry } from './cancel-registry.ts';
import { ClientInput, type ClientSocket } from './client-input.ts';
import { type ComputeLink, ComputeGone, ComputeRefused, computeProtocol, connectCompute } from './compute-link.ts';
import type { ProxyConfig } from './config.ts';
import type { Directory, Route } from './directory.ts';
import type { FailureLimit } from './failure-limit.ts';
import type { ProxyMetrics } from './metrics.ts';
import { Relay } from './relay.ts';
import { type ClientRequest, endpointFromSni, looksLikeEndpoint, parseClientRequest } from './routing.ts';
import type { TlsIdentity } from './tls.ts';

export interface ProxyContext {
  readonly config: ProxyConfig;
  readonly log: Logger;
  readonly directory: Directory;
  readonly tls: TlsIdentity;
  readonly failures: FailureLimit;
  readonly cancels: CancelRegistry;
  readonly metrics: ProxyMetrics;
  readonly mockSecret: Buffer;
  readonly relays: Set<Relay>;
  /** Sessions that count against maxConnections. */
  sessions: number;
}

const ALPN = 'postgresql';
const REFUSAL_LINGER_MS = 1_000;
const CANCEL_TIMEOUT_MS = 10_000;

interface Arrival {
  readonly startup: StartupMessage;
  readonly tls: boolean;
  readonly serverName: string | undefined;
}

/** Serves one accepted socket. Never rejects. */
export async function serveClient(socket: Socket, context: ProxyContext): Promise<void> {
  const address = socket.remoteAddress ?? '';
  const input = new ClientInput(socket);
  let counted = false;
  const deadline = setTimeout(() => input.expire(fatal('08006', 'canceling authentication due to timeout')), context.config.authTimeoutMs);
  const onGone = (): void => clearTimeout(deadline);
  input.gone.signal.addEventListener('abort', onGone, { once: true });
  let relayed = false;
  try {
    const arrival = await receiveStartup(input, context);
    if (arrival === undefined) return;
    if (context.sessions >= context.config.maxConnections) throw fatal('53300', 'sorry, too many clients already');
    context.sessions++;
    counted = true;
    const local = isLoopback(address);
    checkTransport(arrival, local, context.config);
    const request = parseClientRequest(arrival.startup);
    checkReplication(request, context.config);
    if (needsNegotiation(arrival.startup)) input.write(encodeNegotiateProtocolVersion(arrival.startup));
    const endpoint = await admit(input, arrival, request, address, local, context);
    clearTimeout(deadline);
    const { link, route } = await openCompute(input, endpoint, request, arrival.startup.negotiated, context);
    relayed = true;
    startRelay(input, link, endpoint, route, arrival.startup.negotiated, context);
  } catch (error) {
    const { aborted, reason } = input.gone.signal;
    if (!aborted) report(input, error, address, context);
    else if (reason instanceof PgError) report(input, reason, address, context);
  } finally {
    clearTimeout(deadline);
    input.gone.signal.removeEventListener('abort', onGone);
    if (counted && !relayed) context.sessions--;
  }
}

/** Follows the client through TLS; undefined when there is nothing more to do (a cancel request, or a client that is gone). */
async function receiveStartup(input: ClientInput, context: ProxyContext): Promise<Arrival | undefined> {
  let tls: TLSSocket | undefined;
  let sawGssenc = false;
  for (;;) {
    const packet = await input.nextStartup();
    switch (packet.kind) {
      case 'tls':
        if (tls !== undefined) throw new ProtocolError('TLS inside TLS');
        tls = await upgrade(input, context);
        // Without ALPN, another protocol's client could be led here (RFC 7301 cross-protocol attacks).
        if (tls.alpnProtocol !== ALPN)
          throw fatal('08P01', 'received direct SSL connection request without ALPN protocol negotiation extension');
        break;
      case 'ssl':
        if (tls !== undefined) throw new ProtocolError('TLS inside TLS');
        // Bytes after the request were sent in the clear: somebody in between could have put them there.
        if (input.buffered > 0) {
          context.metrics.refused.inc({ reason: 'protocol' });
          input.socket.destroy();
          return undefined;
        }
        input.write(Buffer.from('S'));
        tls = await upgrade(input, context);
        break;
      case 'gssenc':
        if (tls !== undefined || sawGssenc || input.buffered > 0) throw new ProtocolError('unexpected GSSAPI encryption request');
        sawGssenc = true;
        input.write(Buffer.from('N'));
        break;
      case 'cancel':
        await cancel(input, packet, context);
        return undefined;
      case 'startup':
        return { startup: packet, tls: tls !== undefined, serverName: tls === undefined ? undefined : serverNameOf(tls) };
    }
  }
}

function upgrade(input: ClientInput, context: ProxyContext): Promise<TLSSocket> {
  const raw = input.release();
  return new Promise((resolve, reject) => {
    const tls = new TLSSocket(raw, { isServer: true, secureContext: context.tls.context, ALPNProtocols: [ALPN] });
    const failed = (error?: Error): void => {
      context.metrics.refused.inc({ reason: 'tls' });
      context.log.debug({ err: error?.message }, 'TLS handshake failed');
      tls.destroy();
      raw.destroy();
      input.gone.abort(new LakebaseError('CLOSED', 'the TLS handshake failed'));
      reject(input.gone.signal.reason);
    };
    const expired = (): void => failed();
    tls.on('error', failed).on('_tlsError', failed).on('close', failed);
    input.gone.signal.addEventListener('abort', expired, { once: true });
    tls.once('secure', () => {
      tls.off('error', failed).off('_tlsError', failed).off('close', failed);
      input.gone.signal.removeEventListener('abort', expired);
      input.replace(tls as ClientSocket);
      resolve(tls);
    });
  });
}

const serverNameOf = (tls: TLSSocket): string | undefined => {
  const name = (tls as { servername?: string | false | null }).servername;
  return typeof name === 'string' ? name : undefined;
};

function checkTransport(arrival: Arrival, local: boolean, config: ProxyConfig): void {
  if (arrival.tls || config.requireTls === 'never' || (config.requireTls === 'remote' && local)) return;
  throw fatal('28000', 'connection is insecure: TLS is required here', { hint: 'Connect with sslmode=require.' });
}

function checkReplication(request: ClientRequest, config: ProxyConfig): void {
  if (request.replication === 'none' || config.replication === 'all') return;
  if (request.replication === 'logical' && config.replication === 'logical') return;
  throw fatal('0A000', `${request.replication} replication connections are not allowed through this proxy`, {
    hint: 'The proxy setting "replication" says which are.',
  });
}

/** Routing and authentication; the id of the endpoint the client may use. */
async function admit(
  input: ClientInput,
  arrival: Arrival,
  request: ClientRequest,
  address: string,
  local: boolean,
  context: ProxyContext,
): Promise<string> {
  const { directory, failures, config } = context;
  const waitMs = failures.retryAfter(address, request.role);
  if (waitMs > 0) {
    context.metrics.refused.inc({ reason: 'rate_limit' });
    throw fatal('28000', `too many failed logins from this address; try again in ${Math.ceil(waitMs / 1_000)} s`);
  }
  const fromSni = request.namedEndpoint === null ? endpointFromSni(arrival.serverName, config.domain) : null;
  let endpoint = await directory.resolve(request.namedEndpoint ?? fromSni);
  // A host name that is no endpoint's is just the name of this machine; a mistyped endpoint must not end up at another one.
  if (endpoint === undefined && fromSni !== null && !looksLikeEndpoint(fromSni)) endpoint = await directory.resolve(null);
  if (endpoint === undefined && request.namedEndpoint === null && (fromSni === null || !looksLikeEndpoint(fromSni)))
    throw fatal('08004', 'the connection does not say which endpoint it is for', {
      hint: 'Add options=endpoint=<endpoint id> to the connection string, or use the endpoint’s host name.',
    });
  try {
    await authenticate({
      input,
      directory,
      endpointId: endpoint?.endpointId,
      role: request.role,
      reserved: config.reservedRoles.includes(request.role),
      private: arrival.tls || local,
      endpointBinding: arrival.tls ? context.tls.endpointBinding : undefined,
      mockSecret: context.mockSecret,
      log: context.log,
    });
  } catch (error) {
    if (error instanceof AuthenticationFailed) failures.failed(address, request.role);
    throw error;
  }
  failures.succeeded(address, request.role);
  // A mock verifier matches nobody, so an endpoint is known by now.
  if (endpoint === undefined) throw new AuthenticationFailed(request.role, 'password');
  if (endpoint.disabled) throw fatal('57P03', `endpoint ${endpoint.endpointId} is disabled`, { hint: 'Enable it through the API first.' });
  return endpoint.endpointId;
}

/** Holds the client until its compute has accepted a session. */
async function openCompute(
  input: ClientInput,
  endpointId: string,
  request: ClientRequest,
  negotiated: number,
  context: ProxyContext,
): Promise<{ link: ComputeLink; route: Route }> {
  const { directory, config, metrics } = context;
  const started = Date.now();
  const deadline = started + config.wakeTimeoutMs;
  const limit = new AbortController();
  const timer = setTimeout(
    () => limit.abort(fatal('57P03', `endpoint ${endpointId} did not accept connections within ${config.wakeTimeoutMs} ms`)),
    config.wakeTimeoutMs,
  );
  const signal = AbortSignal.any([input.gone.signal, limit.signal]);
  metrics.held.inc();
  let woke = false;
  try {
    for (let attempt = 0; ; attempt++) {
      let route = directory.knownRoute(endpointId);
      if (route === undefined) {
        woke = true;
        route = await orAborted(wake(directory, endpointId, deadline), signal);
      }
      try {
        const link = await connectCompute(route, request.parameters, computeProtocol(negotiated), signal);
        if (woke) metrics.wakeSeconds.observe((Date.now() - started) / 1_000);
        return { link, route };
      } catch (error) {
        if (!(error instanceof ComputeGone)) throw error;
        directory.forgetRoute(endpointId, route);
        context.log.debug({ endpoint: endpointId, compute: route.computeId, err: error.message }, 'compute does not answer');
        if (woke) await sleep(backoffDelay(attempt, { maxMs: 1_000 }), signal);
      }
    }
  } finally {
    clearTimeout(timer);
    metrics.held.dec();
  }
}

async function wake(directory: Directory, endpointId: string, deadline: number): Promise<Route> {
  try {
    return await directory.wake(endpointId, deadline);
  } catch (error) {
    throw fatal(sqlstateOfWake(error), `endpoint ${endpointId} could not be started: ${errorMessage(error)}`);
  }
}

function sqlstateOfWake(error: unknown): string {
  if (!(error instanceof LakebaseError)) return 'XX000';
  if (error.code === 'RESOURCE_EXHAUSTED') return '53300';
  return error.code === 'UNAVAILABLE' ? '08006' : '57P03';
}

/** Stops waiting when the signal fires; the work goes on for whoever shares it. */
function orAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason);
    if (signal.aborted) onAbort();
    signal.addEventListener('abort', onAbort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}

function startRelay(
  input: ClientInput,
  link: ComputeLink,
  endpointId: string,
  route: Route,
  negotiated: number,
  context: ProxyContext,
): void {
  const { cancels, metrics, relays } = context;
  const issued = cancels.issue(negotiated, { route, pid: link.pid, key: link.key });
  const early = input.takeRest();
  const relay = new Relay(
    input.socket,
    link.socket,
    (end) => {
      cancels.revoke(issued.pid);
      relays.delete(relay);
      context.sessions--;
      metrics.bytes.inc({ direction: 'to_client' }, end.bytesToClient);
      metrics.bytes.inc({ direction: 'to_compute' }, end.bytesToCompute);
    },
    () => context.directory.explain(endpointId),
  );
  relays.add(relay);
  metrics.accepted.inc();
  relay.start(Buffer.concat([encodeAuthenticationOk(), link.greeting, encodeBackendKeyData(issued.pid, issued.key), link.ready]), early);
}

/** Silent whatever happens, as on a stock server: the client learns nothing from a wrong key. */
function cancel(input: ClientInput, packet: CancelRequest, context: ProxyContext): Promise<void> {
  const target = context.cancels.find(packet.pid, packet.key);
  context.metrics.cancels.inc({ known: target === undefined ? 'no' : 'yes' });
  if (target === undefined) {
    input.socket.destroy();
    return Promise.resolve();
  }
  return new Promise((resolve) => {
    const socket = connect({ path: unixSocketPath(target.route.socketDir, target.route.port) });
    socket.setTimeout(CANCEL_TIMEOUT_MS, () => socket.destroy());
    socket.on('error', () => {});
    socket.on('close', () => {
      input.socket.destroy();
      resolve();
    });
    socket.resume();
    socket.write(encodeCancelRequest(target.pid, target.key));
  });
}

function report(input: ClientInput, error: unknown, address: string, context: ProxyContext): void {
  const { log, metrics } = context;
  if (error instanceof ComputeRefused) {
    metrics.refused.inc({ reason: 'compute' });
    log.info({ address, sqlstate: error.error.sqlstate, err: error.message }, 'the compute refused a session');
    finish(input, error.frame);
    return;
  }
  const reason = error instanceof AuthenticationFailed ? error.reason : error instanceof ProtocolError ? 'protocol' : 'other';
  metrics.refused.inc({ reason });
  if (error instanceof LakebaseError) log.info({ address, reason, err: error.message }, 'connection refused');
  else log.error({ address, err: errorMessage(error), stack: (error as Error).stack }, 'connection failed');
  refuse(input, toPgError(error));
}

function toPgError(error: unknown): PgError {
  if (error instanceof PgError) return error;
  if (error instanceof AuthenticationFailed) return error.pgError;
  if (error instanceof ProtocolError) return fatal(error.sqlstate, error.message);
  if (error instanceof LakebaseError && error.code !== 'INTERNAL')
    return fatal('08006', `the connection cannot be served now: ${error.message}`);
  return fatal('XX000', 'internal error of the proxy; its log says more');
}

function refuse(input: ClientInput, error: PgError): void {
  finish(input, encodeError({ ...error.fields, severity: 'FATAL' }));
}

/** Last words, then an end that lets the client read them. */
function finish(input: ClientInput, frame: Buffer): void {
  const socket = input.socket;
  input.takeRest();
  if (socket.destroyed) return;
  socket.resume();
  if (socket.writable) socket.end(frame);
  const timer = setTimeout(() => socket.destroy(), REFUSAL_LINGER_MS);
  socket.once('close', () => clearTimeout(timer));
}

export function isLoopback(address: string): boolean {
  return address === '::1' || address.startsWith('127.') || address.startsWith('::ffff:127.');
}
