package dgm_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/persist"
)

// bridge passes bytes between clients and a server, both on unix sockets or both
// on TCP, and can be cut.
type bridge struct {
	l  net.Listener
	wg sync.WaitGroup

	dropped chan struct{} // of capacity 1: a muted bridge has dropped an answer

	mu     sync.Mutex
	target string
	shut   bool // new connections are cut at once
	mute   bool
	pairs  [][2]net.Conn
}

func newBridge(t *testing.T, target string) *bridge {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "bridge"))
	require.NoError(t, err)
	return bridgeOn(t, l, target)
}

// bridged has a bridge before a volume, a Remote that goes through it, and a Local.
func bridged(t *testing.T) (*bridge, *dgm.Remote, *dgm.Local) {
	t.Helper()
	vol := openVolume(t, t.TempDir())
	b := newBridge(t, serveUnix(t, vol))
	return b, dial(t, b.addr(), dgm.RemoteOptions{}), local(t, vol)
}

// requireLetGo: nobody has a file without a name open, behind what was asked before.
func requireLetGo(t *testing.T, m dgm.Manager, ino gearsfs.Ino) {
	t.Helper()
	put(t, m, "tick", "x")
	_, err := m.GetAttr(t.Context(), ino)
	require.ErrorIs(t, err, gearsfs.ErrStale, "nobody has it open")
}

func bridgeOn(t *testing.T, l net.Listener, target string) *bridge {
	b := &bridge{l: l, target: target, dropped: make(chan struct{}, 1)}
	b.wg.Go(b.run)
	t.Cleanup(func() {
		l.Close()
		b.cut()
		b.wg.Wait()
	})
	return b
}

func (b *bridge) addr() string {
	if b.l.Addr().Network() == "unix" {
		return "unix:" + b.l.Addr().String()
	}
	return b.l.Addr().String()
}

// lead makes the bridge lead somewhere else.
func (b *bridge) lead(target string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.target = target
}

func (b *bridge) run() {
	for {
		near, err := b.l.Accept()
		if err != nil {
			return
		}
		b.mu.Lock()
		far, err := net.Dial(b.l.Addr().Network(), b.target)
		if b.shut || err != nil {
			near.Close()
			if far != nil {
				far.Close()
			}
			b.mu.Unlock()
			continue
		}
		b.pairs = append(b.pairs, [2]net.Conn{near, far})
		b.mu.Unlock()
		b.wg.Go(func() {
			io.Copy(far, near)
			hangUp(far)
		})
		b.wg.Go(func() {
			b.answers(near, far)
			hangUp(near)
		})
	}
}

// hangUp says that nothing more comes.
func hangUp(c net.Conn) { c.(interface{ CloseWrite() error }).CloseWrite() }

// answers passes on what the server says, or drops it.
func (b *bridge) answers(near, far net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := far.Read(buf)
		if err != nil {
			return
		}
		b.mu.Lock()
		mute := b.mute
		b.mu.Unlock()
		if !mute {
			near.Write(buf[:n])
			continue
		}
		select {
		case b.dropped <- struct{}{}:
		default:
		}
	}
}

// loseAnswer has one answer dropped, to what ask asks, and the connection lost
// to the clients then.
func (b *bridge) loseAnswer(ask func()) {
	b.mu.Lock()
	b.mute = true
	b.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		ask()
	}()
	<-b.dropped
	b.mu.Lock()
	b.mute = false
	b.mu.Unlock()
	b.halfCut()
	<-done
}

// cut cuts all connections and lets none through until mend.
func (b *bridge) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shut = true
	for _, p := range b.pairs {
		p[0].Close()
		p[1].Close()
	}
}

func (b *bridge) mend() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shut = false
}

// halfCut cuts the connections as the clients see them; the server does not
// hear of it.
func (b *bridge) halfCut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.pairs {
		p[0].Close()
	}
}

func serveUnix(t *testing.T, vol *dgm.Volume) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	serve(t, vol, l)
	return path
}

// untilWaits returns when n operations wait.
func untilWaits(t *testing.T, m dgm.Manager, n int) {
	t.Helper()
	for {
		waits, err := m.Waits(t.Context())
		require.NoError(t, err)
		if len(waits) == n {
			return
		}
	}
}

var takeK = dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"k"}}

func put(t *testing.T, m dgm.Manager, key gearsfs.Key, texts ...string) {
	t.Helper()
	var rs []gearsfs.NewRecord
	for _, text := range texts {
		rs = append(rs, gearsfs.NewRecord{Data: []byte(text)})
	}
	_, err := m.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: key, Records: rs})
	require.NoError(t, err)
}

type taken struct {
	records []gearsfs.Record
	err     error
}

func takeLater(ctx context.Context, m dgm.Manager, take dgm.Take) <-chan taken {
	out := make(chan taken, 1)
	go func() {
		rs, err := m.Take(ctx, take)
		out <- taken{rs, err}
	}()
	return out
}

func receive(t *testing.T, out <-chan taken) taken {
	t.Helper()
	select {
	case got := <-out:
		return got
	case <-time.After(20 * time.Second):
		t.Fatal("the take still waits")
		return taken{}
	}
}

// One take that waits does not make the node remember all later answers.
func TestChangesBesideAWait(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	r := dial(t, "unix:"+serveUnix(t, vol), dgm.RemoteOptions{})
	out := takeLater(t.Context(), r, takeK)
	untilWaits(t, local(t, vol), 1)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for range 400 {
				if err := r.SetXattr(t.Context(), gearsfs.RootIno, fmt.Sprintf("user.%d", i), []byte("x"), 0); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	put(t, r, "k", "x")
	require.NoError(t, receive(t, out).err)
}

func TestSessionIsRenewed(t *testing.T) {
	data, err := persist.Open(t.TempDir(), persist.Options{Create: true, Name: "test"})
	require.NoError(t, err)
	var ahead atomic.Int64
	vol, err := dgm.OpenVolume(t.Context(), dgm.VolumeConfig{
		Data: data, Root: gearsfs.Root,
		Clock: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, vol.Close()) })
	b := newBridge(t, serveUnix(t, vol))
	lost := make(chan struct{})
	noticed := sync.OnceFunc(func() { close(lost) })
	r, m := dial(t, b.addr(), dgm.RemoteOptions{OnRetry: func(error) { noticed() }}), local(t, vol)
	first := r.Session()
	put(t, r, "k", "a")
	leased, err := r.Take(t.Context(), dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"k"}, Lease: true})
	require.NoError(t, err)
	sent := takeLater(t.Context(), r, dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"later"}})
	peeked := make(chan error, 1)
	go func() {
		_, err := r.Peek(t.Context(), dgm.Peek{File: gearsfs.At("/q"), Key: "peeked"})
		peeked <- err
	}()
	untilWaits(t, m, 2)
	b.cut()
	require.Len(t, receive(t, takeLater(t.Context(), m, takeK)).records, 1, "the lease went back")
	ahead.Store(int64(2 * gearsfs.SessionTTL))
	put(t, m, "tick", "x") // what is closed for so long is forgotten
	<-lost                 // else the put below may be sent where nobody reads
	unsent := make(chan error, 1)
	go func() {
		_, err := r.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: "peeked", Records: benchRecord})
		unsent <- err
	}()
	b.mend()
	require.ErrorIs(t, receive(t, sent).err, gearsfs.ErrMaybe)
	require.NoError(t, <-unsent)
	require.NoError(t, <-peeked)
	require.NotEqual(t, first, r.Session())
	require.ErrorIs(t, r.Settle(t.Context(), dgm.Settle{Receipts: []gearsfs.Receipt{*leased[0].Receipt}}), gearsfs.ErrGone)
	put(t, r, "k", "b")
}

// A session that comes back when its grace is over, and then waits for longer
// than SessionTTL, is still known.
func TestSessionComesBackToWait(t *testing.T) {
	data, err := persist.Open(t.TempDir(), persist.Options{Create: true, Name: "test"})
	require.NoError(t, err)
	var ahead atomic.Int64
	vol, err := dgm.OpenVolume(t.Context(), dgm.VolumeConfig{
		Data: data, Root: gearsfs.Root,
		Clock: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, vol.Close()) })
	b := newBridge(t, serveUnix(t, vol))
	r, m := dial(t, b.addr(), dgm.RemoteOptions{}), local(t, vol)
	put(t, r, "other", "x")
	session := r.Session()
	out := takeLater(t.Context(), r, takeK)
	untilWaits(t, m, 1)
	b.cut()
	untilWaits(t, m, 0)
	b.mend()
	untilWaits(t, m, 1)
	ahead.Store(int64(2 * gearsfs.SessionTTL))
	put(t, m, "tick", "x")
	put(t, m, "k", "x")
	require.NoError(t, receive(t, out).err)
	require.Equal(t, session, r.Session())
}

// A take whose connection only its client has lost must not get a record that
// its repetition waits for.
func TestHalfLostTake(t *testing.T) {
	b, r, m := bridged(t)
	for range 20 {
		out := takeLater(t.Context(), r, takeK)
		untilWaits(t, m, 1)
		b.halfCut()
		_, err := r.Status(t.Context()) // it is back
		require.NoError(t, err)
		put(t, m, "k", "x")
		require.NoError(t, receive(t, out).err)
	}
}

// Opens count once, however often their answers are lost.
func TestOpensOverCuts(t *testing.T) {
	b, r, m := bridged(t)
	for i := range 5 {
		name := fmt.Sprint(i)
		attr, err := m.Make(t.Context(), gearsfs.RootIno, name, dgm.Make{Mode: 0o100644})
		require.NoError(t, err)
		b.loseAnswer(func() {
			if _, err := r.Open(t.Context(), attr.Ino); err != nil {
				t.Error(err)
			}
		})
		require.NoError(t, m.Unlink(t.Context(), gearsfs.RootIno, name))
		_, err = m.GetAttr(t.Context(), attr.Ino)
		require.NoError(t, err, "it is open")
		require.NoError(t, r.Release(t.Context(), attr.Ino))
		requireLetGo(t, m, attr.Ino)
	}
}

// Changes in an answer that was lost are not passed over in silence.
func TestWatchOverACut(t *testing.T) {
	b, r, m := bridged(t)
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- r.Watch(t.Context(), func() { close(started) }, func([]gearsfs.Change) {})
	}()
	<-started
	b.halfCut()
	put(t, m, "data", "x")
	require.ErrorIs(t, <-ended, gearsfs.ErrOverload)
}

// Whatever a session had on its way when it ended, nothing stays leased.
func TestLeasesOfSessionsThatEnd(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	path := serveUnix(t, vol)
	m := local(t, vol)
	put(t, m, "k", "a", "b", "c")
	lease := takeK
	lease.Lease, lease.Max = true, 2
	for i := range 100 {
		var c dgm.Manager
		if i%2 == 0 {
			l, err := vol.Local(client)
			require.NoError(t, err)
			c = l
		} else {
			r, err := dgm.Dial(t.Context(), "unix:"+path, dgm.RemoteOptions{Client: client})
			require.NoError(t, err)
			c = r
		}
		one, two := takeLater(t.Context(), c, lease), takeLater(t.Context(), c, lease)
		require.NoError(t, c.Close())
		for _, out := range []<-chan taken{one, two} {
			if err := receive(t, out).err; err != nil && !errors.Is(err, gearsfs.ErrClosed) {
				require.ErrorIs(t, err, gearsfs.ErrMaybe)
			}
		}
		info, err := m.Stream(t.Context(), gearsfs.At("/q"), "k")
		require.NoError(t, err)
		require.EqualValues(t, 3, info.Records, "round %d: %d are leased", i, info.Leased)
	}
}

// Closing a volume ends what its own clients wait for, and lets those of
// sockets go on when it is open again.
func TestCloseUnderClients(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(t.TempDir(), "sock")
	open := func() *dgm.Volume {
		data, err := persist.Open(dir, persist.Options{Create: true, Name: "test"})
		require.NoError(t, err)
		vol, err := dgm.OpenVolume(t.Context(), dgm.VolumeConfig{Data: data, Root: gearsfs.Root})
		require.NoError(t, err)
		return vol
	}
	vol := open()
	var wg sync.WaitGroup
	listen := func() {
		l, err := net.Listen("unix", path)
		require.NoError(t, err)
		serving := vol
		wg.Go(func() {
			if err := serving.Serve(t.Context(), l, nil); err != nil {
				t.Error(err)
			}
		})
	}
	listen()
	r := dial(t, "unix:"+path, dgm.RemoteOptions{})
	out := takeLater(t.Context(), r, takeK)
	ctx, cancel := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	for i := range 4 {
		busy.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				_, err := r.ReadDir(ctx, gearsfs.RootIno, "", 10)
				if err == nil {
					_, err = r.Put(ctx, dgm.Put{File: gearsfs.At(fmt.Sprintf("/p%d", i)), Key: "k", Records: benchRecord})
				}
				if err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 3 {
		l, err := vol.Local(client)
		require.NoError(t, err)
		untilWaits(t, l, 1)
		started, ended := make(chan struct{}), make(chan error, 1)
		go func() { ended <- l.Watch(t.Context(), func() { close(started) }, func([]gearsfs.Change) {}) }()
		<-started
		begun := time.Now()
		require.NoError(t, vol.Close())
		require.Error(t, <-ended)
		_, err = l.GetAttr(t.Context(), gearsfs.RootIno)
		require.ErrorIs(t, err, gearsfs.ErrClosed)
		require.NoError(t, l.Close())
		wg.Wait()
		require.Less(t, time.Since(begun), 1900*time.Millisecond, "nobody had to be cut off")
		vol = open()
		listen()
	}
	put(t, r, "k", "x")
	require.NoError(t, receive(t, out).err)
	cancel()
	busy.Wait()
	require.NoError(t, r.Close())
	require.NoError(t, vol.Close())
	wg.Wait()
}

func TestOffersOfOneName(t *testing.T) {
	node, a, b := openVolume(t, t.TempDir()), openVolume(t, t.TempDir()), openVolume(t, t.TempDir())
	path := "unix:" + serveUnix(t, node)
	dial(t, path, dgm.RemoteOptions{Offer: a, OfferName: "x", OfferAs: gearsfs.Root})
	second := dial(t, path, dgm.RemoteOptions{Offer: b, OfferName: "x", OfferAs: gearsfs.Root})
	worker := dial(t, path, dgm.RemoteOptions{})
	check := func(serves *dgm.Volume, text string) {
		via, err := dgm.Via(t.Context(), worker, "x")
		require.NoError(t, err)
		defer func() { require.NoError(t, via.Close()) }()
		put(t, via, "k", text)
		got := receive(t, takeLater(t.Context(), local(t, serves), takeK))
		require.NoError(t, got.err)
		require.Equal(t, text, string(got.records[0].Data))
	}
	check(b, "to the latest")
	require.NoError(t, second.Close())
	check(a, "to who is left")
}

// A client that reaches a volume through another node, and dies, loses its
// leases there too.
func TestPassedOnSessionDeparts(t *testing.T) {
	node, far := openVolume(t, t.TempDir()), openVolume(t, t.TempDir())
	m := local(t, node)
	require.NoError(t, m.SetRemote(t.Context(), "far", "unix:"+serveUnix(t, far)))
	b := newBridge(t, serveUnix(t, node))
	worker := dial(t, b.addr(), dgm.RemoteOptions{})
	via, err := dgm.Via(t.Context(), worker, "far")
	require.NoError(t, err)
	defer func() { require.NoError(t, via.Close()) }()
	put(t, via, "k", "x")
	lease := takeK
	lease.Lease = true
	rs, err := via.Take(t.Context(), lease)
	require.NoError(t, err)
	require.Len(t, rs, 1)
	b.cut()
	require.NoError(t, receive(t, takeLater(t.Context(), local(t, far), takeK)).err)
}

// A client that reaches its node by two addresses keeps its leases when that is
// started anew and lets it in by both at once: on a unix socket each connection
// that it closes looks like its death.
func TestBackByTwoAddresses(t *testing.T) {
	t.Parallel()
	data, dirs := t.TempDir(), t.TempDir()
	paths := []string{filepath.Join(dirs, "a"), filepath.Join(dirs, "b")}
	var r *dgm.Remote
	var leased []gearsfs.Record
	for range 20 {
		vol := openVolume(t, data)
		var both sync.WaitGroup
		for _, path := range paths {
			l, err := net.Listen("unix", path)
			require.NoError(t, err)
			late := &lateListener{Listener: l}
			if r != nil {
				both.Add(1)
				late.wait = sync.OnceFunc(func() { both.Done(); both.Wait() })
			}
			serve(t, vol, late)
		}
		if r == nil {
			r = dial(t, "unix:"+paths[0]+",unix:"+paths[1], dgm.RemoteOptions{})
			put(t, r, "k", "a")
			var err error
			leased, err = r.Take(t.Context(), dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"k"}, Lease: true})
			require.NoError(t, err)
		}
		session := r.Session()
		for range 10 {
			put(t, r, "other", "x")
		}
		require.Equal(t, session, r.Session())
		_, err := r.Peek(t.Context(), dgm.Peek{File: gearsfs.At("/q"), Key: "k", NoWait: true})
		require.ErrorIs(t, err, gearsfs.ErrEmpty, "it is leased")
		require.NoError(t, vol.Close())
	}
	vol := openVolume(t, data)
	l, err := net.Listen("unix", paths[0])
	require.NoError(t, err)
	serve(t, vol, l)
	require.NoError(t, r.Settle(t.Context(), dgm.Settle{Receipts: []gearsfs.Receipt{*leased[0].Receipt}}))
}

// lateListener lets nobody in before wait returns, where that is not nil.
type lateListener struct {
	net.Listener
	wait func()
}

func (l *lateListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil && l.wait != nil {
		l.wait()
	}
	return c, err
}
