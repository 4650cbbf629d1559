package node

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// shortDir is a directory whose path leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "node")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func start(t *testing.T, cfg Config) *Node {
	t.Helper()
	n, err := Start(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, n.Close()) })
	return n
}

func TestNodeServesAtItsAddresses(t *testing.T) {
	dir := shortDir(t)
	data, extra := filepath.Join(dir, "data"), "unix:"+filepath.Join(dir, "extra")
	n := start(t, Config{Data: data, Name: "a", Listen: []string{extra, "127.0.0.1:0"}})
	inside, err := SocketIn(data)
	require.NoError(t, err)
	assert.Equal(t, inside, n.Address())
	for _, addr := range []string{extra, inside} {
		r, err := dgm.Dial(t.Context(), addr, ClientOptions("test", nil, nil))
		require.NoError(t, err)
		status, err := r.Status(t.Context())
		require.NoError(t, err)
		assert.Equal(t, "a", status.Name)
		assert.Equal(t, Version(), status.Version)
		_, err = r.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: "k", Records: []gearsfs.NewRecord{{}}})
		assert.NoError(t, err, "who started the node may write")
		require.NoError(t, r.Close())
	}
	require.NoError(t, n.Close())
	for _, addr := range []string{extra, inside} {
		assert.NoFileExists(t, strings.TrimPrefix(addr, "unix:"), "a node that ended leaves no socket")
	}
}

func TestStartThatFailsLeavesNothing(t *testing.T) {
	dir := shortDir(t)
	running := start(t, Config{Data: filepath.Join(dir, "running"), Listen: []string{"unix:" + filepath.Join(dir, "taken")}})

	fresh := filepath.Join(dir, "fresh")
	_, err := Start(t.Context(), Config{Data: fresh, Listen: []string{"unix:" + filepath.Join(dir, "taken")}})
	assert.ErrorIs(t, err, gearsfs.ErrInUse)
	assert.NoDirExists(t, fresh, "an address that is taken is found before data are made")

	other := filepath.Join(dir, "other")
	_, err = Start(t.Context(), Config{Data: filepath.Join(dir, "running"), Listen: []string{"unix:" + other}})
	assert.ErrorIs(t, err, gearsfs.ErrInUse)
	assert.NoFileExists(t, other)

	foreign := filepath.Join(dir, "foreign")
	require.NoError(t, os.Mkdir(foreign, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(foreign, "thesis.txt"), nil, 0o600))
	_, err = Start(t.Context(), Config{Data: foreign})
	assert.ErrorIs(t, err, gearsfs.ErrForeign)
	names, err := os.ReadDir(foreign)
	require.NoError(t, err)
	assert.Len(t, names, 1)

	r, err := dgm.Dial(t.Context(), running.Address(), dgm.RemoteOptions{})
	require.NoError(t, err, "the node that runs did not notice")
	require.NoError(t, r.Close())
}

// TestAnotherNameAfterARefusal: a new node whose name the volume has already can
// be started again with another one; from when it has joined it keeps that.
func TestAnotherNameAfterARefusal(t *testing.T) {
	dir := shortDir(t)
	first := start(t, Config{Data: filepath.Join(dir, "first"), Name: "a"})
	second := Config{Data: filepath.Join(dir, "second"), Name: "a", Join: first.Address()}
	_, err := Start(t.Context(), second)
	require.ErrorIs(t, err, gearsfs.ErrExists)
	for _, name := range []string{"b", "c"} {
		second.Name = name
		n, err := Start(t.Context(), second)
		require.NoError(t, err)
		require.NoError(t, n.WaitVoter(t.Context()))
		require.NoError(t, n.Close())
		data, err := persist.Open(second.Data, persist.Options{})
		require.NoError(t, err)
		assert.Equal(t, "b", data.Identity().Name)
		require.NoError(t, data.Close())
	}
}

func TestListenBeyondLoopback(t *testing.T) {
	for addr, ok := range map[string]bool{
		"127.0.0.1:0": true, "localhost:0": true, "[::1]:0": true, "unix:/x": true,
		"0.0.0.0:0": false, ":0": false, "[::]:0": false, "192.0.2.1:1": false,
	} {
		_, err := listenAddrs(Config{Listen: []string{addr}})
		assert.Equal(t, ok, err == nil, "%s: %v", addr, err)
		if !ok {
			assert.ErrorIs(t, err, gearsfs.ErrInvalid)
			assert.ErrorContains(t, err, "--insecure")
		}
		for _, cfg := range []Config{{Insecure: true}, {TLS: &tls.Config{}}} {
			cfg.Listen = []string{addr}
			_, err := listenAddrs(cfg)
			assert.NoError(t, err, addr)
		}
	}
	_, err := listenAddrs(Config{Listen: []string{"nonsense"}})
	assert.ErrorIs(t, err, gearsfs.ErrInvalid)
}

// Other nodes are told addresses that lead to this one from elsewhere too.
func TestAddressesForOtherNodes(t *testing.T) {
	dir := shortDir(t)
	t.Chdir(dir)
	n := start(t, Config{
		Data: "data", Listen: []string{"unix:relative", "0.0.0.0:0", "127.0.0.1:0"}, Insecure: true, Log: slog.New(slog.DiscardHandler),
	})
	got, err := n.listensAt("data")
	require.NoError(t, err)
	host, err := os.Hostname()
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(got), 4)
	assert.Equal(t, "unix:"+filepath.Join(dir, "data", "sock"), got[0])
	assert.Equal(t, "unix:"+filepath.Join(dir, "relative"), got[1])
	assert.Regexp(t, "^"+regexp.QuoteMeta(host)+":[1-9]", got[2])
	assert.Regexp(t, "^127.0.0.1:[1-9]", got[3])

	for name, cfg := range map[string]Config{
		"advertise": {Advertise: []string{"nonsense"}}, "join": {Join: "nonsense"},
	} {
		cfg.Data = filepath.Join(dir, "none")
		_, err := Start(t.Context(), cfg)
		assert.ErrorIs(t, err, gearsfs.ErrInvalid, name)
		assert.ErrorContains(t, err, name)
		assert.NoDirExists(t, cfg.Data)
	}
}

func TestInsecureBelievesWhatItIsTold(t *testing.T) {
	for _, insecure := range []bool{false, true} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		addr := l.Addr().String()
		require.NoError(t, l.Close())
		start(t, Config{
			Data: filepath.Join(shortDir(t), "data"), Listen: []string{addr}, Insecure: insecure, Log: slog.New(slog.DiscardHandler),
		})
		r, err := dgm.Dial(t.Context(), addr, ClientOptions("test", nil, nil))
		require.NoError(t, err)
		_, err = r.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: "k", Records: []gearsfs.NewRecord{{}}})
		if insecure {
			assert.NoError(t, err)
		} else {
			assert.ErrorIs(t, err, gearsfs.ErrAccess, "over plain TCP everybody is nobody")
		}
		require.NoError(t, r.Close())
	}
}

func TestSocketInADirectoryWhosePathIsTooLong(t *testing.T) {
	_, err := SocketIn("/" + strings.Repeat("x", 200))
	assert.ErrorIs(t, err, gearsfs.ErrInvalid)
	n := start(t, Config{
		Data: filepath.Join(shortDir(t), strings.Repeat("x", 120)), Listen: []string{"unix:" + filepath.Join(shortDir(t), "s")},
	})
	r, err := dgm.Dial(context.Background(), n.Address(), dgm.RemoteOptions{})
	require.NoError(t, err, "it does without")
	require.NoError(t, r.Close())
}

func TestTLSFiles(t *testing.T) {
	config, err := TLSFiles{}.Config()
	require.NoError(t, err)
	assert.Nil(t, config)
	_, err = TLSFiles{Cert: "cert"}.Config()
	assert.ErrorIs(t, err, gearsfs.ErrInvalid)
	_, err = TLSFiles{Cert: "/no/cert", Key: "/no/key", CA: "/no/ca"}.Config()
	assert.ErrorContains(t, err, "/no/cert")
}

func TestSockets(t *testing.T) {
	env := func(value string) func(string) string { return func(string) string { return value } }
	assert.Equal(t, []string{"/run/gearsfs.sock"}, Sockets(env("")))
	assert.Equal(t, []string{"/run/user/7/gearsfs.sock", "/run/gearsfs.sock"}, Sockets(env("/run/user/7")))
	assert.Equal(t, []string{"/run/gearsfs.sock"}, Sockets(env("relative")))
}
