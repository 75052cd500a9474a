/** One agent process seen from the host: requests with ids over IPC, status events, its end.
 *  Invariant: every request settles; when the process ends, what is open fails with UNAVAILABLE. */
import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { ComputeStatus, PostgresLogTail, RoleSecret } from '@lakebase/api';
import { ERROR_CODES, type ErrorCode, LakebaseError, sleep } from '@lakebase/base';
import type { AgentMessage, AgentRequest, AgentSetup } from '../agent/protocol.ts';

// The agent runs from where we run: dist in production, src in tests.
const AGENT_MAIN = fileURLToPath(new URL(`../agent-main.${import.meta.url.endsWith('.ts') ? 'ts' : 'js'}`, import.meta.url));

const ANSWER_MS = 1_000;

type Body<T extends AgentRequest['type']> = Extract<AgentRequest, { type: T }>['body'];
interface Waiter {
  resolve: (body: never) => void;
  reject: (error: unknown) => void;
}

export class AgentProcess {
  readonly #child: ChildProcess;
  readonly #waiters = new Map<number, Waiter>();
  readonly exited: Promise<void>;
  #nextId = 1;
  #onAnswered: () => void = () => {};
  onStatus: (status: ComputeStatus) => void = () => {};

  constructor(setup: AgentSetup) {
    this.#child = fork(AGENT_MAIN, [JSON.stringify(setup)], {
      // An agent holds the key of its compute's scratch: no core file of it. Node cannot set limits, a shell that becomes it can.
      execPath: '/bin/sh',
      execArgv: ['-c', 'ulimit -c 0; exec "$0" "$@"', process.execPath, ...process.execArgv],
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      serialization: 'json',
    });
    this.#child.on('message', (message: AgentMessage) => this.#onMessage(message));
    this.exited = new Promise((resolve) => {
      const ended = (): void => {
        for (const waiter of this.#waiters.values()) waiter.reject(new LakebaseError('UNAVAILABLE', 'the agent process ended'));
        this.#waiters.clear();
        resolve();
      };
      this.#child.once('exit', ended);
      this.#child.once('error', ended);
    });
  }

  request<T extends AgentRequest['type']>(
    type: T,
    body: Body<T>,
  ): Promise<T extends 'role' ? RoleSecret : T extends 'log' ? PostgresLogTail : ComputeStatus> {
    return new Promise((resolve, reject) => {
      const id = this.#nextId++;
      this.#waiters.set(id, { resolve: resolve as Waiter['resolve'], reject });
      this.#child.send({ id, type, body } as AgentRequest, (error) => {
        if (error === null) return;
        this.#waiters.delete(id);
        reject(new LakebaseError('UNAVAILABLE', 'the agent process does not take requests', { cause: error }));
      });
    });
  }

  /** Ends the process; whatever it runs dies with it. Its last status comes just before the answer that says why: that one is waited for. */
  async end(): Promise<void> {
    if (this.#waiters.size > 0) {
      const patience = new AbortController();
      await Promise.race([this.#answered(), this.exited, sleep(ANSWER_MS, patience.signal).catch(() => {})]);
      patience.abort();
    }
    if (this.#child.connected) this.#child.disconnect();
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 10_000);
    await this.exited;
    clearTimeout(timer);
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  #answered(): Promise<void> {
    return new Promise((resolve) => {
      this.#onAnswered = resolve;
    });
  }

  #onMessage(message: AgentMessage): void {
    if ('event' in message) {
      this.onStatus(message.status);
      return;
    }
    const waiter = this.#waiters.get(message.id);
    this.#waiters.delete(message.id);
    if (this.#waiters.size === 0) this.#onAnswered();
    if (message.ok) waiter?.resolve(message.body as never);
    else waiter?.reject(new LakebaseError(message.code in ERROR_CODES ? (message.code as ErrorCode) : 'INTERNAL', message.message));
  }
}
