// REST in front of fake-cloud-kms (github.com/winor30/fake-cloud-kms), which speaks gRPC only. Google's own Go packages turn JSON into
// messages and back, so both the JSON that our adapter sends and the checks behind it are independent of us.
// Built inside that module, see tests/interop/google.interop.ts.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/http"
	"strings"

	kmspb "cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/winor30/fake-cloud-kms/kmscrypto"
	"github.com/winor30/fake-cloud-kms/service"
	"github.com/winor30/fake-cloud-kms/store/memory"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

const bodyMax = 1 << 20

var httpStatus = map[codes.Code]int{
	codes.InvalidArgument: 400, codes.FailedPrecondition: 400, codes.Unauthenticated: 401, codes.PermissionDenied: 403,
	codes.NotFound: 404, codes.AlreadyExists: 409, codes.Unimplemented: 501, codes.Unavailable: 503,
}
var statusName = map[codes.Code]string{
	codes.InvalidArgument: "INVALID_ARGUMENT", codes.FailedPrecondition: "FAILED_PRECONDITION", codes.Unauthenticated: "UNAUTHENTICATED",
	codes.PermissionDenied: "PERMISSION_DENIED", codes.NotFound: "NOT_FOUND", codes.AlreadyExists: "ALREADY_EXISTS",
	codes.Unimplemented: "UNIMPLEMENTED", codes.Unavailable: "UNAVAILABLE",
}

// What of the service is used here.
type keyService interface {
	CreateKeyRing(context.Context, *kmspb.CreateKeyRingRequest) (*kmspb.KeyRing, error)
	CreateCryptoKey(context.Context, *kmspb.CreateCryptoKeyRequest) (*kmspb.CryptoKey, error)
	CreateCryptoKeyVersion(context.Context, *kmspb.CreateCryptoKeyVersionRequest) (*kmspb.CryptoKeyVersion, error)
	GetCryptoKey(context.Context, *kmspb.GetCryptoKeyRequest) (*kmspb.CryptoKey, error)
	UpdateCryptoKeyPrimaryVersion(context.Context, *kmspb.UpdateCryptoKeyPrimaryVersionRequest) (*kmspb.CryptoKey, error)
	Encrypt(context.Context, *kmspb.EncryptRequest) (*kmspb.EncryptResponse, error)
	Decrypt(context.Context, *kmspb.DecryptRequest) (*kmspb.DecryptResponse, error)
}

func main() {
	listen := flag.String("listen", "127.0.0.1:9011", "address")
	flag.Parse()
	kms := service.New(memory.New(), kmscrypto.NewTinkEngine())
	http.HandleFunc("/v1/", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, bodyMax))
		var answer proto.Message
		if err == nil {
			answer, err = call(r.Context(), kms, r, body)
		}
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			s := status.Convert(err)
			code, name := httpStatus[s.Code()], statusName[s.Code()]
			if code == 0 {
				code, name = 500, "INTERNAL"
			}
			w.WriteHeader(code)
			_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code, "message": s.Message(), "status": name}})
			return
		}
		text, _ := protojson.MarshalOptions{UseEnumNumbers: true}.Marshal(answer)
		_, _ = w.Write(text)
	})
	log.Fatal(http.ListenAndServe(*listen, nil))
}

func call(ctx context.Context, kms keyService, r *http.Request, body []byte) (proto.Message, error) {
	path, verb, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/"), ":")
	parent, leaf := path[:max(strings.LastIndex(path, "/"), 0)], path[strings.LastIndex(path, "/")+1:]
	read := func(m proto.Message) error {
		if err := protojson.Unmarshal(body, m); err != nil {
			return status.Errorf(codes.InvalidArgument, "Invalid JSON payload received: %v", err)
		}
		return nil
	}
	switch {
	case verb == "encrypt":
		in := &kmspb.EncryptRequest{}
		if err := read(in); err != nil {
			return nil, err
		}
		in.Name = path
		return kms.Encrypt(ctx, in)
	case verb == "decrypt":
		in := &kmspb.DecryptRequest{}
		if err := read(in); err != nil {
			return nil, err
		}
		in.Name = path
		return kms.Decrypt(ctx, in)
	case verb == "updatePrimaryVersion":
		in := &kmspb.UpdateCryptoKeyPrimaryVersionRequest{}
		if err := read(in); err != nil {
			return nil, err
		}
		in.Name = path
		return kms.UpdateCryptoKeyPrimaryVersion(ctx, in)
	case r.Method == http.MethodPost && leaf == "keyRings":
		return kms.CreateKeyRing(ctx, &kmspb.CreateKeyRingRequest{Parent: parent, KeyRingId: r.URL.Query().Get("keyRingId"), KeyRing: &kmspb.KeyRing{}})
	case r.Method == http.MethodPost && leaf == "cryptoKeys":
		key := &kmspb.CryptoKey{}
		if err := read(key); err != nil {
			return nil, err
		}
		return kms.CreateCryptoKey(ctx, &kmspb.CreateCryptoKeyRequest{Parent: parent, CryptoKeyId: r.URL.Query().Get("cryptoKeyId"), CryptoKey: key})
	case r.Method == http.MethodPost && leaf == "cryptoKeyVersions":
		return kms.CreateCryptoKeyVersion(ctx, &kmspb.CreateCryptoKeyVersionRequest{Parent: parent, CryptoKeyVersion: &kmspb.CryptoKeyVersion{}})
	case r.Method == http.MethodGet:
		return kms.GetCryptoKey(ctx, &kmspb.GetCryptoKeyRequest{Name: path})
	}
	return nil, status.Error(codes.Unimplemented, "not here")
}
