/** Agent process: serves exactly one compute over Node IPC, then ends. It ends too when the host goes away, and the shim makes Postgres
 *  follow us, so no compute outlives its host by accident. Setup comes as JSON in argv[2]. */
import { LakebaseError, errorMessage } from '@lakebase/base';
import { createLogger } from '@lakebase/service-kit';
import { Compute } from './agent/compute.ts';
import { warmUp } from './agent/warm-up.ts';
import type { AgentMessage, AgentRequest, AgentSetup } from './agent/protocol.ts';

const setup = JSON.parse(process.argv[2] ?? '{}') as AgentSetup;
const log = createLogger('agent', setup.logLevel);
let compute: Compute | undefined;

if (setup.account !== null) {
  // Everything is imported by now, so it does not matter whether the account could read our files.
  process.setgroups?.([]);
  process.setgid?.(setup.account.gid);
  process.setuid?.(setup.account.uid);
}

const send = (message: AgentMessage): void => {
  if (process.connected) process.send?.(message, undefined, undefined, () => {}); // the host may go away at any moment
};

async function handle(request: AgentRequest): Promise<unknown> {
  if (request.type === 'start') {
    if (compute !== undefined) throw new LakebaseError('CONFLICT', 'this agent already has a compute');
    const { computeId, spec } = request.body;
    compute = new Compute(setup, request.body, log.child({ computeId, endpointId: spec.endpointId }), (status) =>
      send({ event: 'status', status }),
    );
    return compute.start();
  }
  if (compute === undefined) throw new LakebaseError('CONFLICT', 'this agent has no compute yet');
  switch (request.type) {
    case 'change':
      return compute.change(request.body);
    case 'look':
      return compute.look();
    case 'log':
      return compute.log(request.body.lines);
    case 'role':
      return compute.role(request.body.name);
    case 'stop':
      return compute.stop(request.body.mode);
  }
}

void warmUp(setup.warmUp, () => compute !== undefined);

process.on('message', (request: AgentRequest) => {
  handle(request).then(
    (body) => send({ id: request.id, ok: true, body: body as never }),
    (error: unknown) =>
      send({ id: request.id, ok: false, code: error instanceof LakebaseError ? error.code : 'INTERNAL', message: errorMessage(error) }),
  );
});
process.on('disconnect', () => {
  const gone = compute?.stop('immediate') ?? Promise.resolve();
  void Promise.resolve(gone).finally(() => process.exit(0));
});
process.on('SIGTERM', () => {}); // the host decides
process.on('SIGINT', () => {}); // Ctrl-C reaches the whole process group: the host stops us in order
process.on('uncaughtException', (error) => {
  log.error({ err: errorMessage(error), stack: error.stack }, 'agent failed');
  process.exit(1);
});
