/** Fakes of the KMS providers for tests of other packages and of the whole system. Never imported by code that ships a service. */
export * from './fake-kms.ts';
export * from './fake-aws-kms.ts';
export * from './fake-azure-vault.ts';
export * from './fake-google-kms.ts';
export * from './fake-vault.ts';
export * from './google-grpc-bridge.ts';
export * from './local-harness.ts';
export * from './conformance.ts';
export * from './self-signed.ts';
