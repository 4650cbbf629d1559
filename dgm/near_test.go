package dgm_test

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/transport"
)

// twoWays is a volume that is served over TCP and says that it is at a unix
// socket too, which is the test's to make.
type twoWays struct {
	*dgm.Volume
	tcp, path string
}

func openTwoWays(t *testing.T, insecure bool) twoWays {
	t.Helper()
	l := listenTCP(t)
	w := twoWays{tcp: l.Addr().String(), path: filepath.Join(t.TempDir(), "sock")}
	data, err := persist.Open(t.TempDir(), persist.Options{Create: true, Name: "test"})
	require.NoError(t, err)
	w.Volume, err = dgm.OpenVolume(t.Context(), dgm.VolumeConfig{
		Data: data, Root: gearsfs.Root, Insecure: insecure, Addrs: "unix:" + w.path + "," + w.tcp,
		Fatal: func(err error) { t.Errorf("fatal: %v", err) },
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	serve(t, w.Volume, l)
	return w
}

// at makes the socket.
func (w twoWays) at(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", w.path)
	require.NoError(t, err)
	return l
}

// claiming are the options of a client that says that it is uid, in the groups of
// this process.
func claiming(uid uint32) dgm.RemoteOptions {
	gids := []uint32{uint32(os.Getegid())}
	groups, _ := os.Getgroups() //nolint:errcheck // as if it were in none
	for _, g := range groups {
		if uint32(g) != gids[0] {
			gids = append(gids, uint32(g))
		}
	}
	return dgm.RemoteOptions{ClaimCaller: true, Client: dgm.Client{Caller: gearsfs.Caller{UID: uid, GIDs: gids}}}
}

func dialAsSelf(t *testing.T, addr string) *dgm.Remote {
	t.Helper()
	r, err := dgm.Dial(t.Context(), addr, claiming(uint32(os.Geteuid())))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

// TestNearer: a client on the node's machine goes over to its unix socket, where
// it is there, is the node's, and leaves the client who it is.
func TestNearer(t *testing.T) {
	far := claiming(0)
	far.Far = true
	for name, c := range map[string]struct {
		secure bool
		opts   dgm.RemoteOptions
		socket func(t *testing.T, w twoWays)
		want   transport.PeerKind
	}{
		"it is there": {
			opts: claiming(0), want: transport.PeerUnix,
			socket: func(t *testing.T, w twoWays) { serve(t, w.Volume, w.at(t)) },
		},
		"to stay": {
			opts: far, want: transport.PeerTCP,
			socket: func(t *testing.T, w twoWays) { serve(t, w.Volume, w.at(t)) },
		},
		"as somebody else": {
			opts: claiming(1234), want: transport.PeerTCP,
			socket: func(t *testing.T, w twoWays) { serve(t, w.Volume, w.at(t)) },
		},
		"claims nothing": {
			opts: dgm.RemoteOptions{}, want: transport.PeerTCP,
			socket: func(t *testing.T, w twoWays) { serve(t, w.Volume, w.at(t)) },
		},
		"claims are not believed": {
			secure: true, opts: claiming(0), want: transport.PeerTCP,
			socket: func(t *testing.T, w twoWays) { serve(t, w.Volume, w.at(t)) },
		},
		"no socket": {
			opts: claiming(0), want: transport.PeerTCP,
			socket: func(*testing.T, twoWays) {},
		},
		"nobody listens": {
			opts: claiming(0), want: transport.PeerTCP,
			socket: func(t *testing.T, w twoWays) {
				l := w.at(t).(*net.UnixListener)
				l.SetUnlinkOnClose(false)
				require.NoError(t, l.Close())
			},
		},
		"another volume's": {
			opts: claiming(0), want: transport.PeerTCP,
			socket: func(t *testing.T, w twoWays) { serve(t, openVolume(t, t.TempDir()), w.at(t)) },
		},
		"another user's": {
			opts: claiming(0), want: transport.PeerTCP,
			socket: func(t *testing.T, w twoWays) { serve(t, w.Volume, listenAs(t, 1234, w)) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := openTwoWays(t, !c.secure)
			c.socket(t, w)
			r, err := dgm.Dial(t.Context(), w.tcp, c.opts)
			require.NoError(t, err)
			defer r.Close()
			over, err := r.Over(t.Context())
			require.NoError(t, err)
			require.Equal(t, c.want, over)
			attr, err := r.GetAttr(t.Context(), gearsfs.RootIno)
			require.NoError(t, err)
			require.Equal(t, gearsfs.RootIno, attr.Ino)
		})
	}
}

// listenAs makes the socket as if another user had.
func listenAs(t *testing.T, uid int, w twoWays) net.Listener {
	t.Helper()
	made := make(chan net.Listener)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		defer close(made)
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: w.path}); err != nil {
			t.Error(err)
			return
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			t.Error(errno)
			return
		}
		if err := unix.Listen(fd, 16); err != nil { // the kernel notes who does that
			t.Error(err)
			return
		}
		l, err := net.FileListener(os.NewFile(uintptr(fd), w.path))
		if err != nil {
			t.Error(err)
			return
		}
		made <- l
	}()
	l := <-made
	require.NotNil(t, l)
	return l
}

// TestNearerIsNotKnown: where the unix socket's answer does not come the session
// goes on over TCP, and what it has open is open once.
func TestNearerIsNotKnown(t *testing.T) {
	w := openTwoWays(t, true)
	inner := serveUnix(t, w.Volume)
	b := bridgeOn(t, w.at(t), inner)
	m := local(t, w.Volume)
	made, err := m.Create(t.Context(), gearsfs.RootIno, "f", regular)
	require.NoError(t, err)

	var r *dgm.Remote
	b.loseAnswer(func() { r = dialAsSelf(t, w.tcp) })
	over, err := r.Over(t.Context())
	require.NoError(t, err)
	require.Equal(t, transport.PeerTCP, over)
	put(t, r, "k", "x")
	rs, err := r.Take(t.Context(), takeK)
	require.NoError(t, err)
	require.Len(t, rs, 1)
	_, err = r.Open(t.Context(), made.Ino)
	require.NoError(t, err)
	require.NoError(t, m.LetGo(t.Context(), made.Ino))
	require.NoError(t, m.Unlink(t.Context(), gearsfs.RootIno, "f"))
	_, err = m.GetAttr(t.Context(), made.Ino)
	require.NoError(t, err, "it is open")
}

// TestNearerAgain: the next connection is made where the last one was, or, when
// nobody listens there any more, over TCP.
func TestNearerAgain(t *testing.T) {
	w := openTwoWays(t, true)
	b := bridgeOn(t, w.at(t), serveUnix(t, w.Volume))
	r := dialAsSelf(t, w.tcp)
	put(t, r, "k", "x")
	for _, want := range []transport.PeerKind{transport.PeerUnix, transport.PeerTCP} {
		if want == transport.PeerTCP {
			require.NoError(t, b.l.Close())
		}
		b.halfCut()
		rs, err := r.Peek(t.Context(), dgm.Peek{File: gearsfs.At("/q"), Key: "k"})
		require.NoError(t, err)
		require.Len(t, rs, 1)
		over, err := r.Over(t.Context())
		require.NoError(t, err)
		require.Equal(t, want, over)
	}
}
