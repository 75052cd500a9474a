/** The client's side of a connection until it is relayed: a pull interface over its socket, plain or TLS.
 *  Invariant: at most {@link HELD_BYTES_MAX} bytes of a client that talks ahead are kept; beyond that it is not read. */
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { LakebaseError } from '@lakebase/base';
import { AUTH_MESSAGE_MAX, MessageParser, type StartupPacket, StartupParser, type WireMessage } from '@lakebase/pg-wire';

export const HELD_BYTES_MAX = 65_536;
const TLS_HANDSHAKE_RECORD = 0x16;

export type ClientSocket = Socket & Duplex;

export class ClientInput {
  socket: ClientSocket;
  /** Aborted when the client is gone (reason: CLOSED) or out of time (reason: what to tell it). */
  readonly gone: AbortController = new AbortController();
  #startup: StartupParser | undefined = new StartupParser();
  #messages: MessageParser | undefined;
  #held = 0;
  #first: Buffer | undefined;
  #seen = false;
  #wake: (() => void) | undefined;

  readonly #onData = (chunk: Buffer): void => {
    this.#held += chunk.length;
    if (!this.#seen) this.#first = chunk;
    this.#seen = true;
    try {
      if (this.#messages !== undefined) this.#messages.push(chunk);
      else this.#startup?.push(chunk);
    } catch {
      // A poisoned parser throws again when it is pulled.
    }
    if (this.#wake !== undefined) this.#wake();
    else if (this.#held > HELD_BYTES_MAX) this.socket.pause();
  };
  readonly #onClose = (): void => {
    this.gone.abort(new LakebaseError('CLOSED', 'the client went away'));
    this.#wake?.();
  };
  readonly #onEnd = (): void => this.#onClose();

  constructor(socket: ClientSocket) {
    this.socket = socket;
    this.#attach();
  }

  #attach(): void {
    this.socket.on('data', this.#onData).on('close', this.#onClose).on('end', this.#onEnd).on('error', ignore);
  }

  #detach(): void {
    this.socket.off('data', this.#onData).off('close', this.#onClose).off('end', this.#onEnd);
  }

  /** The next untyped packet; `tls` when the client begins with a TLS handshake at once. */
  async nextStartup(): Promise<StartupPacket | { readonly kind: 'tls' }> {
    const parser = this.#startup as StartupParser;
    for (;;) {
      this.gone.signal.throwIfAborted();
      if (this.#first?.[0] === TLS_HANDSHAKE_RECORD) return { kind: 'tls' };
      this.#first = undefined;
      const packet = parser.next();
      if (packet !== undefined) return packet;
      await this.#more();
    }
  }

  /** Bytes that came with or after the last packet. */
  get buffered(): number {
    return this.#startup?.buffered ?? 0;
  }

  async nextMessage(): Promise<WireMessage> {
    if (this.#messages === undefined) {
      this.#messages = new MessageParser({ limit: AUTH_MESSAGE_MAX });
      const rest = this.#startup?.takeRest();
      this.#startup = undefined;
      if (rest !== undefined && rest.length > 0) this.#messages.push(rest);
    }
    for (;;) {
      this.gone.signal.throwIfAborted();
      const m = this.#messages.next();
      if (m !== undefined) return m;
      await this.#more();
    }
  }

  async #more(): Promise<void> {
    this.#held = 0;
    this.socket.resume();
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
    this.#wake = undefined;
  }

  /** Stops whoever waits for input, with `error`. */
  expire(error: Error): void {
    this.gone.abort(error);
    this.#wake?.();
  }

  /** Takes the socket away, for a TLS layer; bytes not yet parsed go back into it. */
  release(): ClientSocket {
    this.#detach();
    this.#first = undefined;
    this.socket.pause();
    const rest = this.#startup?.takeRest();
    if (rest !== undefined && rest.length > 0) this.socket.unshift(rest);
    return this.socket;
  }

  /** Goes on with the TLS layer over the socket that was released. */
  replace(socket: ClientSocket): void {
    this.socket = socket;
    this.#startup = new StartupParser();
    this.#held = 0;
    this.#attach();
  }

  /** Ends the pull interface: stops reading and returns what nobody pulled. */
  takeRest(): Buffer {
    this.#detach();
    this.socket.pause();
    const rest = this.#messages?.takeRest() ?? this.#startup?.takeRest() ?? Buffer.alloc(0);
    this.#messages = undefined;
    this.#startup = undefined;
    return rest;
  }

  write(bytes: Uint8Array): void {
    if (!this.socket.destroyed && this.socket.writable) this.socket.write(bytes);
  }
}

/** Errors are followed by `close`; without a listener they would end the process. */
function ignore(): void {}
