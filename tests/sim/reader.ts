/** A simulated pageserver: computes the commit LSN from the members' reports, and reads WAL of one lineage from any of them. What it was served must
 *  never change, also when it restarts and reads a stretch again.
 *
 *  What the drivers ask of it (seal, follow) is done at once: that such a request arrives late is not modelled. */
import type { Lsn } from '@lakebase/ids';
import { type Configuration, type MemberPosition, type WalLineage, commitLsn, firstTermOf, quorumCommit } from '@lakebase/wal-quorum';
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
  /** Pages up to here are in the object store. */
  uploaded = GENESIS_LSN;
  #lineage = 0;
  /** How many lineages there are up to the one it followed last. */
  #lineages = 1;
  /** The newest lineage that is known to have begun. */
  #begun = 0;
  /** It has nobody to follow. */
  #sealed = false;

  constructor(world: World) {
    this.#world = world;
    world.add(this);
    this.#poll();
  }

  /** Loses what it did not make durable: reads it again. */
  restart(): void {
    const { random } = this.#world;
    this.position = this.log.recordEnd(random.between(this.uploaded, this.position));
    this.#positions.clear();
  }
  /** Its disk is gone. */
  lose(): void {
    this.position = this.uploaded;
    this.#positions.clear();
  }

  /** The highest term of the lineage that it follows. */
  get #lastTerm(): number {
    return firstTermOf(Array.from({ length: this.#lineages + 1 }, () => ({ number: 0 }))) - 1;
  }

  /** The pages there are. */
  get pages(): readonly SimRecord[] {
    return this.log.records.slice(0, countUpTo(this.log.records, this.position));
  }

  /** No WAL but that of `lineage` any more, and none of it yet; all pages are in the object store then. False: that lineage is over. */
  seal(lineage: number): boolean {
    if (lineage < this.#begun && !this.#world.has('pages-go-back-a-lineage')) return false;
    this.#lineage = lineage;
    this.#sealed = true;
    this.uploaded = this.position;
    return true;
  }

  /** What is true of the timeline. Pages of another lineage beyond the start of the newest are fetched anew from the store first. */
  follow(lineages: readonly WalLineage[]): void {
    const { number, startLsn } = lineages.at(-1) as WalLineage;
    if (number > this.#lineage && this.position > startLsn) {
      if (this.uploaded > startLsn)
        throw new InvariantBroken(`reader: lineage ${number} begins at ${startLsn}, and the pages in the store go up to ${this.uploaded}`);
      return this.lose();
    }
    this.#sealed = false;
    this.#lineage = this.#begun = number;
    if (lineages.length === this.#lineages) return;
    this.#lineages = lineages.length;
    this.#positions.clear();
    this.#configuration = FIRST_CONFIGURATION;
    this.commitLsn = startLsn;
    // What had been served beyond it is lost.
    if (this.log.end > startLsn) this.log.truncate(startLsn);
    this.log.flushed = this.log.end;
  }

  #poll(): void {
    this.#world.clock.after(this.#world.random.between(5, 20), () => {
      const { random, putChance } = this.#world;
      const to = random.pick(NODES);
      if (!this.#sealed) this.#world.send(this.id, to, { kind: 'readRequest', lineage: this.#lineage, from: this.position });
      if (putChance > 0 && random.chance(0.05)) this.uploaded = this.position;
      this.#poll();
    });
  }

  receive(from: string, message: Message): void {
    if (this.#sealed) return;
    if (message.kind === 'position') {
      if (message.lineage !== this.#lineage) return;
      this.#positions.set(message.member, message.position);
      if (message.configuration.generation > this.#configuration.generation) this.#configuration = message.configuration;
      const configuration = this.#world.counted(this.#configuration);
      const positions = new Map([...this.#positions].map(([id, p]) => [id, this.#world.seen(p, configuration)] as const));
      const known = commitLsn(positions, this.commitLsn, configuration);
      if (known <= this.commitLsn) return;
      this.commitLsn = known;
      this.#world.checker.claimOfTerm(quorumCommit(positions, configuration).term, known, 'reader (commit LSN)');
    } else if (message.kind === 'readAnswer' && message.lineage === this.#lineage && message.from === this.position)
      this.#served(message.records, message.to, from);
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
    checker.claim(this.log.records, to, this.#lastTerm, `reader, served by ${from}`);
  }
}
