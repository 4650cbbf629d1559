package node

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// Caller is who runs this process.
func Caller() gearsfs.Caller {
	c := gearsfs.Caller{UID: uint32(os.Geteuid()), GIDs: []uint32{uint32(os.Getegid())}}
	if groups, err := os.Getgroups(); err == nil { // without them only the primary group counts
		for _, g := range groups {
			if uint32(g) != c.GIDs[0] {
				c.GIDs = append(c.GIDs, uint32(g))
			}
		}
	}
	return c
}

// ClientOptions say that a session belongs to who runs this process. retrying
// is told when the node is lost, and each time that it can't be reached again.
func ClientOptions(process string, tlsConfig *tls.Config, retrying func(error)) dgm.RemoteOptions {
	return dgm.RemoteOptions{
		Client: dgm.Client{Caller: Caller(), Process: process}, ClaimCaller: true,
		TLS: tlsConfig, OnRetry: retrying,
	}
}

// TLSFiles are the PEM files that TLS is made of. Both ends show a certificate
// that the same authority has signed: who has one is believed.
type TLSFiles struct{ Cert, Key, CA string }

// Config returns the TLS configuration for both ends, nil where no file is
// named. Errors: gearsfs.ErrInvalid where some are missing or unusable.
func (f TLSFiles) Config() (*tls.Config, error) {
	switch {
	case f == TLSFiles{}:
		return nil, nil
	case f.Cert == "" || f.Key == "" || f.CA == "":
		return nil, gearsfs.ErrInvalid.Because("TLS needs a certificate, its key and the authority (CA) that the other end's is signed by")
	}
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, gearsfs.ErrInvalid.Because("TLS certificate %s: %v", f.Cert, err)
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("TLS authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, gearsfs.ErrInvalid.Because("TLS authority %s: no certificate in it", f.CA)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}, nil
}
