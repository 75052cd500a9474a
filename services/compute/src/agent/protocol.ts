/** Messages between the compute host and an agent process (Node IPC, JSON). The host speaks first; every request carries an id. */
import type { ComputeChange, ComputeSpec, ComputeStatus, PostgresLogTail, RoleSecret } from '@lakebase/api';

/** What the host tells a fresh agent before its compute is known. */
export interface AgentSetup {
  readonly shimPath: string;
  readonly sharedBuffers: string;
  /** Null: bounded by free space alone. */
  readonly cacheBytes: number | null;
  readonly prefetch: boolean;
  /** Rounds of settling. */
  readonly settle: boolean;
  readonly maxIngestLagBytes: number;
  /** OS accounts that may connect as any role: the services' and the agent's own. */
  readonly trustedAccounts: readonly string[];
  readonly logLevel: string;
  /** LAKEBASE_TEST_SCRATCH_PLAINTEXT: for tests that compare with, or prove, encryption. */
  readonly plaintextScratch: boolean;
  /** A scratch directory and an URL of the host's own: a spare runs the code of a start once before it is needed. */
  readonly warmUp: { readonly directory: string; readonly url: string };
  /** Dropped to before anything is done, when the host is root: Postgres refuses to run as root. */
  readonly account: { readonly uid: number; readonly gid: number } | null;
}

export interface AgentStart {
  readonly computeId: string;
  /** The installation of the project's major. */
  readonly postgres: { readonly binDir: string; readonly libDir: string };
  readonly spec: ComputeSpec;
  /** Token of the timeline's scope: all an agent may do in storage. */
  readonly token: string;
  /** Scratch directory of this compute: exists, empty, ours. */
  readonly directory: string;
  /** Short directory for sockets: exists, empty, ours. */
  readonly socketDir: string;
  /** Highest term the host has seen on this branch; a hint that saves the election a round. */
  readonly lastTerm: number | null;
}

export type AgentRequest =
  | { readonly id: number; readonly type: 'start'; readonly body: AgentStart }
  | { readonly id: number; readonly type: 'change'; readonly body: ComputeChange }
  | { readonly id: number; readonly type: 'stop'; readonly body: { readonly mode: 'fast' | 'immediate' } }
  | { readonly id: number; readonly type: 'look'; readonly body: Record<string, never> }
  | { readonly id: number; readonly type: 'log'; readonly body: { readonly lines: number } }
  | { readonly id: number; readonly type: 'role'; readonly body: { readonly name: string } };

export type AgentReply =
  | { readonly id: number; readonly ok: true; readonly body: ComputeStatus | RoleSecret | PostgresLogTail }
  | { readonly id: number; readonly ok: false; readonly code: string; readonly message: string };

/** Unsolicited: the state after any change, and activity every few seconds. */
export interface AgentEvent {
  readonly event: 'status';
  readonly status: ComputeStatus;
}
export type AgentMessage = AgentReply | AgentEvent;
