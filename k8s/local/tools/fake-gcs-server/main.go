// fake-gcs-server as tests start it: on a free port, and only for clients that have a token signed with a known key.
//
//	fake-gcs-server FOLDER PUBLIC_KEY     each folder in FOLDER is a bucket; PUT /_internal/reseed reads them again
package main

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/fsouza/fake-gcs-server/fakestorage"
)

func main() {
	text, err := os.ReadFile(os.Args[2])
	check(err)
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	check(err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	address := listener.Addr().String()
	server, err := fakestorage.NewServerWithOptions(fakestorage.Options{
		Seed: os.Args[1], NoListener: true, PublicHost: address, Writer: os.Stderr,
	})
	check(err)
	fmt.Println("listening on", address)
	handler := func(answer http.ResponseWriter, request *http.Request) {
		reload := strings.HasPrefix(request.URL.Path, "/_internal/")
		if reload || signed(request.Header.Get("Authorization"), key.(*rsa.PublicKey)) {
			server.HTTPHandler().ServeHTTP(answer, request)
		} else {
			http.Error(answer, "<Error><Code>AuthenticationRequired</Code></Error>", http.StatusUnauthorized)
		}
	}
	check(http.Serve(listener, http.HandlerFunc(handler)))
}

// signed says whether an Authorization header has a JSON web token signed with RS256 by the owner of the key.
func signed(authorization string, key *rsa.PublicKey) bool {
	token, found := strings.CutPrefix(authorization, "Bearer ")
	end := strings.LastIndex(token, ".")
	if !found || end < 0 {
		return false
	}
	signature, err := base64.RawURLEncoding.DecodeString(token[end+1:])
	digest := sha256.Sum256([]byte(token[:end]))
	return err == nil && rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) == nil
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
