package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// authority signs certificates for tests.
type authority struct {
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	a := &authority{dir: t.TempDir(), key: key, cert: cert}
	writePEM(t, filepath.Join(a.dir, "ca"), "CERTIFICATE", der)
	return a
}

// sign makes a certificate for 127.0.0.1 and returns its files.
func (a *authority) sign(t *testing.T, name string) TLSFiles {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, a.cert, &key.PublicKey, a.key)
	require.NoError(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	f := TLSFiles{Cert: filepath.Join(a.dir, name), Key: filepath.Join(a.dir, name+".key"), CA: filepath.Join(a.dir, "ca")}
	writePEM(t, f.Cert, "CERTIFICATE", der)
	writePEM(t, f.Key, "PRIVATE KEY", secret)
	return f
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

// Over TLS both ends show certificates of one authority; others are refused.
func TestTLS(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	server, err := ours.sign(t, "server").Config()
	require.NoError(t, err)
	start(t, Config{Data: filepath.Join(shortDir(t), "data"), Listen: []string{addr}, TLS: server})

	client, err := ours.sign(t, "client").Config()
	require.NoError(t, err)
	r, err := dgm.Dial(t.Context(), addr, ClientOptions("test", client, nil))
	require.NoError(t, err)
	_, err = r.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: "k", Records: []gearsfs.NewRecord{{}}})
	assert.NoError(t, err, "who has a certificate is believed")
	require.NoError(t, r.Close())

	stranger, err := others.sign(t, "stranger").Config()
	require.NoError(t, err)
	stranger.RootCAs = client.RootCAs // so that it is the node that refuses
	anonymous := client.Clone()
	anonymous.Certificates = nil
	distrustful := client.Clone()
	distrustful.RootCAs = stranger.ClientCAs
	for name, options := range map[string]dgm.RemoteOptions{
		"a stranger's certificate":    ClientOptions("test", stranger, nil),
		"no certificate":              ClientOptions("test", anonymous, nil),
		"a node of another authority": ClientOptions("test", distrustful, nil),
		"no TLS":                      ClientOptions("test", nil, nil),
	} {
		_, err := dgm.Dial(t.Context(), addr, options)
		assert.Error(t, err, name)
		t.Logf("%s: %v", name, err)
	}
}

// Nodes of one volume that reach each other over TCP trust each other by their
// certificates; without them, or with --insecure instead, they don't or do.
func TestNodesJoinOverTCP(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	config := func(a *authority, name string) *tls.Config {
		c, err := a.sign(t, name).Config()
		require.NoError(t, err)
		return c
	}
	first := startAt(t, Config{Name: "a", TLS: config(ours, "a")})
	second := startAt(t, Config{Name: "b", TLS: config(ours, "b"), Join: first.addr})
	require.NoError(t, second.WaitVoter(t.Context()))
	r, err := dgm.Dial(t.Context(), second.addr, ClientOptions("test", config(ours, "client"), nil))
	require.NoError(t, err)
	_, err = r.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: "k", Records: []gearsfs.NewRecord{{}}})
	assert.NoError(t, err)
	require.NoError(t, r.Close())

	_, err = Start(t.Context(), Config{
		Data: filepath.Join(shortDir(t), "data"), Name: "c", TLS: config(others, "c"), Join: first.addr,
	})
	assert.Error(t, err, "a stranger's certificate")

	plain := startAt(t, Config{Name: "a"})
	_, err = Start(t.Context(), Config{Data: filepath.Join(shortDir(t), "data"), Name: "b", Join: plain.addr})
	assert.ErrorIs(t, err, gearsfs.ErrAccess)
	assert.ErrorContains(t, err, "--insecure")
	trusting := startAt(t, Config{Name: "a", Insecure: true})
	second = startAt(t, Config{Name: "b", Insecure: true, Join: trusting.addr})
	assert.NoError(t, second.WaitVoter(t.Context()))
}

// A nodeAt is a node that others reach at an address.
type nodeAt struct {
	*Node
	addr string
}

// startAt starts a node that is reached over TCP only.
func startAt(t *testing.T, cfg Config) nodeAt {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	cfg.Data, cfg.Listen, cfg.Advertise = filepath.Join(shortDir(t), "data"), []string{addr}, []string{addr}
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	return nodeAt{start(t, cfg), addr}
}
