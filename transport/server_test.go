package transport

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"runtime/pprof"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// TestMain fails where a goroutine of this package is left: every Close waits.
func TestMain(m *testing.M) {
	if os.Getenv(dialAndShow) != "" {
		os.Exit(showPeer(os.Getenv(dialAndShow)))
	}
	code := m.Run()
	var left strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&left, 1); err != nil {
		panic(err)
	}
	if code == 0 && strings.Contains(left.String(), "transport.(*") {
		fmt.Println("goroutines are left:\n" + left.String())
		code = 1
	}
	os.Exit(code)
}

// dialAndShow is the environment variable that makes the test program a process
// that asks a server, by its socket's path, who it takes the caller for.
const dialAndShow = "TRANSPORT_TEST_DIAL"

// showPeer prints what a server that answers with Peer says.
func showPeer(path string) int {
	c, err := Dial(context.Background(), Addr{Network: "unix", Address: path}, Config{})
	if err == nil {
		var answer []byte
		if answer, err = c.Call(context.Background(), nil); err == nil {
			fmt.Print(string(answer))
			err = c.Close()
		}
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// whoami answers every call with what is known of the caller.
var whoami = HandlerFunc(func(call *Call) {
	p := call.Conn().Peer()
	slices.Sort(p.GIDs[1:])
	call.Reply(fmt.Appendf(nil, "%s uid %d gids %v pid %d", p.Kind, p.UID, p.GIDs, p.PID))
})

func TestUnixPeer(t *testing.T) {
	addr := serveOn(t, "unix", serving(whoami))
	c := dial(t, addr, Config{})
	require.Equal(t, PeerUnix, c.Peer().Kind)
	require.Equal(t, uint32(os.Getuid()), c.Peer().UID)
	require.Equal(t, os.Getpid(), c.Peer().PID)
	answer, err := c.Call(t.Context(), nil)
	require.NoError(t, err)
	require.Contains(t, string(answer), fmt.Sprintf("unix uid %d gids [%d", os.Getuid(), os.Getgid()))
}

// Another process, with groups of its own, is known by the kernel's word. This
// needs root, to become somebody else.
func TestUnixPeerOfOthers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root, to become somebody else")
	}
	addr := serveOn(t, "unix", serving(whoami))
	many := []int{5000}
	for i := range 100 {
		many = append(many, 6000+i)
	}
	for _, groups := range [][]int{{}, {7}, {1003, 7, 9}, many} {
		var list []string
		for _, g := range groups {
			list = append(list, fmt.Sprint(g))
		}
		option := "--groups=" + strings.Join(list, ",")
		if len(groups) == 0 {
			option = "--clear-groups"
		}
		// The capability lets it through the socket's mode and the directory's.
		cmd := exec.Command("setpriv", "--reuid=1234", "--regid=1003", option,
			"--inh-caps=+dac_override", "--ambient-caps=+dac_override", "/proc/self/exe")
		exe, err := os.Executable()
		require.NoError(t, err)
		cmd.Args[len(cmd.Args)-1] = exe
		cmd.Env = append(os.Environ(), dialAndShow+"="+addr.Address)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		want := []int{1003}
		for _, g := range groups {
			if g != 1003 {
				want = append(want, g)
			}
		}
		slices.Sort(want[1:])
		require.Equal(t, fmt.Sprintf("unix uid 1234 gids %v pid %d", want, cmd.Process.Pid), string(out))
	}
}

func TestTCPPeerIsNobody(t *testing.T) {
	peers := make(chan Peer, 1)
	addr := serveOn(t, "tcp", Config{NewHandler: func(c *Conn) (Handler, error) {
		peers <- c.Peer()
		return echo, nil
	}})
	c := dial(t, addr, Config{})
	require.Equal(t, Peer{Kind: PeerTCP, Addr: addr.Address, Here: true}, c.Peer())
	p := <-peers
	require.Equal(t, Peer{Kind: PeerTCP, Addr: p.Addr, Here: true}, p)
}

// authority issues certificates for 127.0.0.1.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, pool: x509.NewCertPool()}
	a.cert, a.key = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) sign(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	template.SerialNumber = big.NewInt(1)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, parentKey := a.cert, a.key
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	require.NoError(a.t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(a.t, err)
	return cert, key
}

// config is a side that shows a certificate for name and trusts a, mutually.
func (a *authority) config(name string) *tls.Config {
	cert, key := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
		RootCAs:      a.pool, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}
}

func TestTLS(t *testing.T) {
	a := newAuthority(t)
	names := make(chan string, 1)
	cfg := Config{TLS: a.config("server"), NewHandler: func(c *Conn) (Handler, error) {
		names <- c.Peer().Name
		return echo, nil
	}}
	addr := serveOn(t, "tcp", cfg)
	c := dial(t, addr, Config{TLS: a.config("client")})
	require.Equal(t, "client", <-names)
	require.Equal(t, PeerTLS, c.Peer().Kind)
	require.Equal(t, "server", c.Peer().Name)
	for _, size := range []int{0, 100, 20_000, 5 << 20} {
		answer, err := c.Call(t.Context(), make([]byte, size))
		require.NoError(t, err)
		require.Len(t, answer, size)
	}
	require.NoError(t, c.Close(), "in peace")
	require.ErrorIs(t, c.Err(), gearsfs.ErrClosed)
}

func TestTLSRefusals(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	addr := serveOn(t, "tcp", Config{TLS: a.config("server")})
	plain := serveOn(t, "tcp", Config{})
	unknownClient := stranger.config("client")
	unknownClient.RootCAs = a.pool
	noCertificate := &tls.Config{RootCAs: a.pool}
	for _, c := range []struct {
		name string
		addr Addr
		tls  *tls.Config
		want error
	}{
		{"server unknown", addr, stranger.config("client"), gearsfs.ErrAccess},
		{"client unknown", addr, unknownClient, gearsfs.ErrAccess},
		{"no certificate", addr, noCertificate, gearsfs.ErrAccess},
		{"plain server", plain, a.config("client"), gearsfs.ErrNoNode},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Dial(t.Context(), c.addr, Config{TLS: c.tls})
			require.ErrorIs(t, err, c.want)
		})
	}
	_, err := Dial(t.Context(), addr, Config{})
	require.Error(t, err, "plain client")

	old := a.config("client")
	old.MaxVersion = tls.VersionTLS12
	_, err = tls.Dial("tcp", addr.Address, old)
	require.ErrorContains(t, err, "protocol version")
}

// A server goes on beside strangers, and closes with connections open.
func TestServer(t *testing.T) {
	ln, err := Listen(unixAddr(t))
	require.NoError(t, err)
	s, err := Serve(ln, serving(echo))
	require.NoError(t, err)
	stranger, err := net.Dial("unix", ln.Address().Address)
	require.NoError(t, err)
	_, err = stranger.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	require.NoError(t, err)
	silent, err := net.Dial("unix", ln.Address().Address)
	require.NoError(t, err)

	c := dial(t, ln.Address(), Config{})
	_, err = c.Call(t.Context(), []byte("x"))
	require.NoError(t, err)
	_, err = stranger.Read(make([]byte, 1))
	require.Error(t, err)

	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	<-c.Done()
	require.ErrorIs(t, c.Err(), gearsfs.ErrClosed)
	_, err = silent.Read(make([]byte, 1))
	require.Error(t, err)
	_, err = Dial(t.Context(), ln.Address(), Config{})
	require.ErrorIs(t, err, gearsfs.ErrNoNode)
}
