package transport

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

func TestParseAddr(t *testing.T) {
	for _, c := range []struct {
		in, want, reason string
	}{
		{in: "localhost:7000", want: "localhost:7000"},
		{in: "127.0.0.1:0", want: "127.0.0.1:0"},
		{in: ":7000", want: ":7000"},
		{in: "[::1]:65535", want: "[::1]:65535"},
		{in: "unix:/run/gearsfs.sock", want: "unix:/run/gearsfs.sock"},
		{in: "unix:here", want: "unix:here"},
		{in: "unix:/a b:7", want: "unix:/a b:7"},
		{in: "", reason: "neither"},
		{in: "localhost", reason: "neither"},
		{in: "/run/gearsfs.sock", reason: "neither"},
		{in: "::1:7000", reason: "neither"},
		{in: "host:", reason: "port"},
		{in: "host:http", reason: "port"},
		{in: "host:65536", reason: "port"},
		{in: "host:-1", reason: "port"},
		{in: "http://host:80", reason: "neither"},
		{in: "//host:80", reason: "not a host"},
		{in: "unix:", reason: "missing"},
		{in: "unix:@abstract", reason: "abstract"},
		{in: "unix:/a\x00b", reason: `'\x00'`},
		{in: "a:1,b:2", reason: "','"},
		{in: "unix:/" + strings.Repeat("x", 107), reason: "107"},
	} {
		a, err := ParseAddr(c.in)
		if c.reason != "" {
			require.ErrorIs(t, err, gearsfs.ErrInvalid, c.in)
			require.ErrorContains(t, err, c.reason)
			continue
		}
		require.NoError(t, err, c.in)
		require.Equal(t, c.want, a.String())
	}
}

func TestParseAddrs(t *testing.T) {
	all, err := ParseAddrs("a:1, unix:/s ,b:2")
	require.NoError(t, err)
	require.Equal(t, []Addr{{"tcp", "a:1"}, {"unix", "/s"}, {"tcp", "b:2"}}, all)
	for _, bad := range []string{"", ",", "a:1,", "a:1,,b:2"} {
		_, err := ParseAddrs(bad)
		require.ErrorIs(t, err, gearsfs.ErrInvalid, "%q", bad)
	}
}

func unixAddr(t *testing.T) Addr {
	return Addr{Network: "unix", Address: filepath.Join(t.TempDir(), "s")}
}

func TestUnixSocketIsPrivate(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	addr := unixAddr(t)
	ln, err := Listen(addr)
	require.NoError(t, err)
	info, err := os.Lstat(addr.Address)
	require.NoError(t, err)
	require.Equal(t, os.ModeSocket|0o600, info.Mode())
	require.NoError(t, ln.Close())
	require.NoError(t, ln.Close())
	left, err := os.ReadDir(filepath.Dir(addr.Address))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestUnixSocketInUse(t *testing.T) {
	addr := unixAddr(t)
	ln, err := Listen(addr)
	require.NoError(t, err)
	defer ln.Close()
	_, err = Listen(addr)
	require.ErrorIs(t, err, gearsfs.ErrInUse)
	require.ErrorContains(t, err, addr.String())

	c, err := net.Dial("unix", addr.Address)
	require.NoError(t, err, "the first one still listens")
	require.NoError(t, c.Close())
}

// A socket of a program that knows nothing of the lock file is respected too.
func TestUnixSocketOfAnotherProgram(t *testing.T) {
	addr := unixAddr(t)
	other, err := net.Listen("unix", addr.Address)
	require.NoError(t, err)
	defer other.Close()
	_, err = Listen(addr)
	require.ErrorIs(t, err, gearsfs.ErrInUse)
}

func TestUnixSocketNotASocket(t *testing.T) {
	addr := unixAddr(t)
	require.NoError(t, os.WriteFile(addr.Address, []byte("mine"), 0o600))
	_, err := Listen(addr)
	require.ErrorIs(t, err, gearsfs.ErrExists)
	data, err := os.ReadFile(addr.Address)
	require.NoError(t, err)
	require.Equal(t, "mine", string(data))
}

func leaveStaleSocket(t *testing.T, path string) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	ln.SetUnlinkOnClose(false)
	require.NoError(t, ln.Close())
}

// Of many that find a stale socket one replaces it, and keeps it.
func TestUnixSocketStale(t *testing.T) {
	for range 50 {
		addr := unixAddr(t)
		leaveStaleSocket(t, addr.Address)
		var won atomic.Pointer[Listener]
		var wins, other atomic.Int32
		var wait sync.WaitGroup
		for range 8 {
			wait.Go(func() {
				ln, err := Listen(addr)
				switch {
				case err == nil:
					wins.Add(1)
					won.Store(ln)
				case gearsfs.CodeOf(err) != gearsfs.ErrInUse.Code:
					other.Add(1)
				}
			})
		}
		wait.Wait()
		require.Equal(t, int32(1), wins.Load())
		require.Zero(t, other.Load())
		c, err := net.Dial("unix", addr.Address)
		require.NoError(t, err)
		require.NoError(t, c.Close())
		require.NoError(t, won.Load().Close())
	}
}

// A socket that others put there after ours is not removed by Close.
func TestCloseLeavesForeignSocket(t *testing.T) {
	addr := unixAddr(t)
	ln, err := Listen(addr)
	require.NoError(t, err)
	require.NoError(t, os.Remove(addr.Address))
	leaveStaleSocket(t, addr.Address)
	require.NoError(t, ln.Close())
	_, err = os.Lstat(addr.Address)
	require.NoError(t, err)
}

func TestListenErrors(t *testing.T) {
	ln, err := Listen(Addr{Network: "tcp", Address: "127.0.0.1:0"})
	require.NoError(t, err)
	defer ln.Close()
	require.NotContains(t, ln.Address().String(), ":0")
	_, err = Listen(ln.Address())
	require.ErrorIs(t, err, gearsfs.ErrInUse)
	require.ErrorContains(t, err, ln.Address().String())

	_, err = Listen(Addr{Network: "unix", Address: filepath.Join(t.TempDir(), "missing", "s")})
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestDialNobody(t *testing.T) {
	ln, err := Listen(Addr{Network: "tcp", Address: "127.0.0.1:0"})
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	for _, addr := range []Addr{ln.Address(), unixAddr(t)} {
		_, err := Dial(t.Context(), addr, Config{})
		require.ErrorIs(t, err, gearsfs.ErrNoNode)
		require.ErrorIs(t, err, ErrRefused)
		require.ErrorContains(t, err, addr.String())
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Dial(gone, ln.Address(), Config{})
	require.ErrorIs(t, err, context.Canceled)
}
