package dgm_test

import (
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/dgm/dgmtest"
	"github.com/gearsfs/gearsfs/persist"
)

// openVolume opens a volume on a data directory and closes it with the test.
func openVolume(t *testing.T, dir string) *dgm.Volume {
	t.Helper()
	data, err := persist.Open(dir, persist.Options{Create: true, Name: "test"})
	require.NoError(t, err)
	vol, err := dgm.OpenVolume(t.Context(), dgm.VolumeConfig{
		Data: data, Root: gearsfs.Root, Insecure: true,
		Fatal: func(err error) { t.Errorf("fatal: %v", err) },
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, vol.Close()) })
	return vol
}

var client = dgm.Client{Caller: gearsfs.Root, Host: "here", PID: 1, Process: "test"}

func local(t *testing.T, vol *dgm.Volume) *dgm.Local {
	t.Helper()
	m, err := vol.Local(client)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// serve serves vol on l until the test ends.
func serve(t *testing.T, vol *dgm.Volume, l net.Listener) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := vol.Serve(t.Context(), l, nil); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(wg.Wait)
}

func dial(t *testing.T, addr string, opts dgm.RemoteOptions) *dgm.Remote {
	t.Helper()
	opts.Client, opts.ClaimCaller = client, true
	r, err := dgm.Dial(t.Context(), addr, opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

// The three ways to a volume of one node.

func byLocal(t *testing.T) dgmtest.Opener {
	vol := openVolume(t, t.TempDir())
	return func(t *testing.T) dgm.Manager { return local(t, vol) }
}

func byUnix(t *testing.T) dgmtest.Opener {
	vol := openVolume(t, t.TempDir())
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	serve(t, vol, l)
	return func(t *testing.T) dgm.Manager { return dial(t, "unix:"+path, dgm.RemoteOptions{}) }
}

func byTCP(t *testing.T) dgmtest.Opener {
	vol := openVolume(t, t.TempDir())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	serve(t, vol, l)
	return func(t *testing.T) dgm.Manager { return dial(t, l.Addr().String(), dgm.RemoteOptions{}) }
}

func TestLocal(t *testing.T) {
	t.Parallel()
	dgmtest.Run(t, byLocal)
}

func TestRemoteUnix(t *testing.T) {
	t.Parallel()
	dgmtest.Run(t, byUnix)
}

func TestRemoteTCP(t *testing.T) {
	t.Parallel()
	dgmtest.Run(t, byTCP)
}

func TestAlone(t *testing.T) {
	for name, by := range map[string]dgmtest.Fresh{"Local": byLocal, "Unix": byUnix, "TCP": byTCP} {
		t.Run(name, func(t *testing.T) { dgmtest.RunAlone(t, by) })
	}
}
