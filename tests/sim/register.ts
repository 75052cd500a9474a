/** The Manager's row, as a process: one configuration, changed by compare-and-swap on its generation. It never fails; messages to it do. */
import { firstTermOf } from '@lakebase/wal-quorum';
import { FIRST_LINEAGE } from './machine.ts';
import { FIRST_CONFIGURATION, type World } from './world.ts';
import type { Message, Process, RegisterValue } from './messages.ts';

export class Register implements Process {
  readonly id = 'register';
  readonly #world: World;
  value: RegisterValue;

  constructor(world: World) {
    this.#world = world;
    this.value = {
      configuration: FIRST_CONFIGURATION,
      incarnations: Object.fromEntries(FIRST_CONFIGURATION.members.map((id) => [id, 1])),
      lineages: [FIRST_LINEAGE],
      before: [],
      unasked: false,
    };
    world.add(this);
    world.checker.configured(FIRST_CONFIGURATION, this.id);
  }

  receive(from: string, message: Message): void {
    if (message.kind === 'registerSwap' && (message.generation === this.value.configuration.generation || this.#blind(message.value))) {
      const { configuration: before, lineages } = this.value;
      if (message.value.lineages.length > lineages.length) this.#world.onRecovery(this.value, message.value);
      this.value = message.value;
      const { configuration } = message.value;
      this.#world.checker.configured(configuration, from);
      if (message.value.lineages.length > lineages.length) this.#world.note(() => `recovered: ${firstTermOf(message.value.lineages)}`);
      else if (before.newMembers !== null && configuration.newMembers === null) {
        const aborted = configuration.members.every((id) => before.members.includes(id));
        this.#world.checker.counts[aborted ? 'aborts' : 'replacements']++;
      }
    } else if (message.kind !== 'registerRead' && message.kind !== 'registerSwap') return;
    this.#world.send(this.id, from, { kind: 'registerValue', value: this.value });
  }

  #blind(value: RegisterValue): boolean {
    return this.#world.has('no-compare-and-swap') && value.configuration.generation >= this.value.configuration.generation;
  }
}
