/** A simulated pageserver: computes the commit LSN from the members' reports, and reads WAL from any of them. What it was served must never change,
 *  also when it restarts and reads a stretch again. */
import type { Lsn } from '@lakebase/ids';
import { type Configuration, type MemberPosition, commitLsn, quorumCommit } from '@lakebase/wal-quorum';
import { InvariantBroken } from './checker.ts';
import { GENESIS_LSN, SimLog, type SimRecord, countUpTo } from './log.ts';
import type { Message, Process } from './messages.ts';
import { FIRST_CONFIGURATION, NODES, type World } from './world.ts';

export class Reader implements Process {
  readonly id = 'reader';
  readonly #world: World;
  /** Everything ever served. */
  readonly log = new SimLog();
  position = GENESIS_LSN;
  commitLsn: Lsn = GENESIS_LSN as Lsn;
  readonly #positions = new Map<string, MemberPosition>();
  /** The newest a member told. */
  #configuration: Configuration = FIRST_CONFIGURATION;

  constructor(world: World) {
    this.#world = world;
    world.add(this);
    this.#poll();
  }

  /** Loses what it did not make durable: reads it again. */
  restart(): void {
    const { random } = this.#world;
    this.position = this.log.recordEnd(random.between(GENESIS_LSN, this.position));
    this.#positions.clear();
  }

  #poll(): void {
    this.#world.clock.after(this.#world.random.between(5, 20), () => {
      this.#world.send(this.id, this.#world.random.pick(NODES), { kind: 'readRequest', from: this.position });
      this.#poll();
    });
  }

  receive(from: string, message: Message): void {
    if (message.kind === 'position') {
      this.#positions.set(message.member, message.position);
      if (message.configuration.generation > this.#configuration.generation) this.#configuration = message.configuration;
      const configuration = this.#world.counted(this.#configuration);
      const positions = new Map([...this.#positions].map(([id, p]) => [id, this.#world.seen(p, configuration)] as const));
      const known = commitLsn(positions, this.commitLsn, configuration);
      if (known <= this.commitLsn) return;
      this.commitLsn = known;
      this.#world.checker.claimOfTerm(quorumCommit(positions, configuration).term, known, 'reader (commit LSN)');
    } else if (message.kind === 'readAnswer' && message.from === this.position) this.#served(message.records, message.to, from);
  }

  #served(records: readonly SimRecord[], to: number, from: string): void {
    const { checker } = this.#world;
    const fresh = records.filter((record) => record.end > this.log.end);
    const known = records[records.length - fresh.length - 1];
    const kept = known === undefined ? undefined : this.log.records[countUpTo(this.log.records, known.end) - 1];
    if (known?.id !== kept?.id)
      throw new InvariantBroken(`reader: ${from} served record ${known?.id} where it had been served ${kept?.id}`);
    if (fresh.length > 0) this.log.append(this.log.end, to, fresh, `reader, from ${from}`);
    this.log.flushed = this.log.end;
    this.position = to;
    checker.counts.served += records.length;
    checker.claim(this.log.records, to, Number.MAX_SAFE_INTEGER, `reader, served by ${from}`);
  }
}
