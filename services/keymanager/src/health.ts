/** What a probe's outcome means for a project's key: the state machine of docs/flows/key-path.md, without I/O or clocks of its own.
 *  Invariants
 *  - Denied revokes, unreachable never does: it runs the grace, then suspends. The grace counts from the first failure since the last
 *    success, whatever happens in between (a restart, another reason); it is part of what is stored.
 *  - REVOKED stays REVOKED while the KMS is unreachable: only a success opens a revoked key.
 *  - SHREDDED is final. */
import type { KeyState, KeyStateChange } from '@lakebase/api';

export type ProbeOutcome =
  | { readonly kind: 'OK' }
  | { readonly kind: 'DENIED'; readonly reason: string }
  | { readonly kind: 'UNREACHABLE'; readonly reason: string };

export interface KeyHealth {
  readonly state: KeyState;
  readonly reason: string;
  /** When the running outage began; null while the KMS answers. */
  readonly unreachableSince: string | null;
  readonly history: readonly KeyStateChange[];
}

const HISTORY_MAX = 50;

export const newHealth = (now: number): KeyHealth => ({
  state: 'ACTIVE',
  reason: '',
  unreachableSince: null,
  history: [{ time: iso(now), state: 'ACTIVE', reason: 'created' }],
});

export function afterProbe(health: KeyHealth, outcome: ProbeOutcome, graceMs: number, now: number): KeyHealth {
  if (health.state === 'SHREDDED') return health;
  const answered = health.unreachableSince === null ? health : { ...health, unreachableSince: null };
  switch (outcome.kind) {
    case 'OK':
      return move(answered, 'ACTIVE', '', now);
    case 'DENIED':
      // Denied again in other words (messages of providers carry request ids) is nothing new.
      if (health.state === 'REVOKED' && gist(health.reason) === gist(outcome.reason)) return answered;
      return move(answered, 'REVOKED', outcome.reason, now);
    case 'UNREACHABLE': {
      if (health.state === 'REVOKED') return health;
      const outage = health.unreachableSince === null ? { ...health, unreachableSince: iso(now) } : health;
      const reason = health.state === 'UNREACHABLE' || health.state === 'SUSPENDED' ? health.reason : outcome.reason;
      return afterTime(move(outage, health.state === 'SUSPENDED' ? 'SUSPENDED' : 'UNREACHABLE', reason, now), graceMs, now);
    }
  }
}

/** The grace may end between probes. */
export function afterTime(health: KeyHealth, graceMs: number, now: number): KeyHealth {
  if (health.state !== 'UNREACHABLE' || health.unreachableSince === null) return health;
  if (now - Date.parse(health.unreachableSince) < graceMs) return health;
  return move(
    health,
    'SUSPENDED',
    `no answer since ${health.unreachableSince}, longer than the grace of ${Math.round(graceMs / 1_000)} s (${health.reason})`,
    now,
  );
}

export const shredded = (health: KeyHealth, now: number): KeyHealth =>
  move({ ...health, unreachableSince: null }, 'SHREDDED', 'the wrapped keys of this project were destroyed', now);

function move(health: KeyHealth, state: KeyState, reason: string, now: number): KeyHealth {
  if (health.state === state && health.reason === reason) return health;
  // The same state for another reason is told, but is no change of state.
  const history = health.state === state ? health.history : [...health.history, { time: iso(now), state, reason }].slice(-HISTORY_MAX);
  return { ...health, state, reason, history };
}

const gist = (reason: string): string => reason.replaceAll(/[0-9a-fA-F-]{6,}/g, '');

export const iso = (ms: number): string => new Date(ms).toISOString();
