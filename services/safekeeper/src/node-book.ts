/** Where the other safekeepers are: those of the configuration file, and those that joined later, told by the Manager with a configuration.
 *  Invariant: what the configuration file says of a node wins; the rest is kept on disk, so that a restart finds its peers without the Manager. */
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type PeerAddress, SafekeeperClient } from '@lakebase/api';
import { type Logger, errorMessage } from '@lakebase/base';
import { type Configuration, nodeOf, votersOf } from '@lakebase/wal-quorum';

export interface PeerNode {
  readonly address: PeerAddress;
  readonly client: SafekeeperClient;
}

export interface NodeBookOptions {
  readonly self: PeerAddress;
  readonly peers: readonly PeerAddress[];
  readonly token: string;
  readonly file: string;
  readonly log: Logger;
}

const NODES_MAX = 64;
const same = (a: PeerAddress, b: PeerAddress): boolean => a.httpUrl === b.httpUrl && a.pgHost === b.pgHost && a.pgPort === b.pgPort;

export class NodeBook {
  readonly #options: NodeBookOptions;
  readonly #fixed: ReadonlySet<string>;
  readonly #nodes = new Map<string, PeerNode>();
  #self: PeerAddress;
  /** Follows a node that was not known, or is elsewhere now. */
  onNode: (address: PeerAddress) => void = () => {};

  constructor(options: NodeBookOptions) {
    this.#options = options;
    this.#self = options.self;
    this.#fixed = new Set(options.peers.map((p) => p.id));
    for (const address of [...options.peers, ...this.#read()]) if (!this.#nodes.has(address.id)) this.#set(address);
  }

  static fileIn(dataDir: string): string {
    return join(dataDir, 'nodes.json');
  }

  /** All but this one. */
  get peers(): readonly PeerNode[] {
    return [...this.#nodes.values()];
  }

  addressOf(member: string): PeerAddress | undefined {
    const node = nodeOf(member);
    return node === this.#self.id ? this.#self : this.#nodes.get(node)?.address;
  }

  /** Where the members of a configuration are, by member id; those whose node is not known here are left out. */
  addressesOf(configuration: Configuration): PeerAddress[] {
    return votersOf(configuration).flatMap((id) => {
      const address = this.addressOf(id);
      return address === undefined ? [] : [{ ...address, id }];
    });
  }

  /** The ports this process got, when the configuration left them open. */
  listening(httpPort: number, pgPort: number): void {
    const url = new URL(this.#self.httpUrl);
    url.port = String(httpPort);
    this.#self = { ...this.#self, httpUrl: url.href.replace(/\/$/, ''), pgPort };
  }

  learn(nodes: readonly PeerAddress[]): void {
    let changed = false;
    for (const address of nodes) {
      const known = this.#nodes.get(address.id);
      if (address.id === this.#self.id || this.#fixed.has(address.id) || this.#nodes.size >= NODES_MAX) continue;
      if (known !== undefined && same(known.address, address)) continue;
      this.#set(address);
      changed = true;
      this.onNode(address);
    }
    if (changed) this.#write();
  }

  #set(address: PeerAddress): void {
    const client = new SafekeeperClient({ baseUrl: address.httpUrl, token: this.#options.token });
    this.#nodes.set(address.id, { address, client });
  }

  #read(): PeerAddress[] {
    const { file, self, log } = this.#options;
    if (!existsSync(file)) return [];
    try {
      return (JSON.parse(readFileSync(file, 'utf8')) as PeerAddress[]).filter((a) => a.id !== self.id);
    } catch (error) {
      log.warn({ file, err: errorMessage(error) }, 'addresses of safekeepers cannot be read; the Manager tells them again');
      return [];
    }
  }

  #write(): void {
    const { file } = this.#options;
    const later = [...this.#nodes.values()].map((n) => n.address).filter((a) => !this.#fixed.has(a.id));
    writeFileSync(`${file}.new`, JSON.stringify(later), { mode: 0o600, flush: true });
    renameSync(`${file}.new`, file);
  }
}
