import { registerKmsConformance } from './testing/conformance.ts';
import { FakeAwsKms, FakeAzureVault, FakeGoogleKms, FakeVault, LocalHarness } from './testing/index.ts';

registerKmsConformance('AWS_KMS on its fake', () => new FakeAwsKms().listen());
registerKmsConformance('AZURE_KEY_VAULT (RSA) on its fake', () => new FakeAzureVault('RSA').listen());
registerKmsConformance('AZURE_KEY_VAULT (oct-HSM, as Managed HSM) on its fake', () => new FakeAzureVault('oct-HSM').listen());
registerKmsConformance('GCP_KMS on its fake', () => new FakeGoogleKms().listen());
registerKmsConformance('VAULT_TRANSIT on its fake', () => new FakeVault().listen());
registerKmsConformance('LOCAL', () => Promise.resolve(new LocalHarness()));
