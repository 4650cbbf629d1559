package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// keeper is a Handler that keeps calls until the test answers them.
type keeper struct {
	mu    sync.Mutex
	calls []*Call
}

func (k *keeper) Serve(call *Call) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, call)
}

// take returns the calls that came since the last take, when all is quiet. To be
// used in a bubble.
func (k *keeper) take() []*Call {
	synctest.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	defer func() { k.calls = nil }()
	return k.calls
}

// outcomes records the order in which calls ended.
type outcomes struct {
	mu  sync.Mutex
	all []string
}

func (o *outcomes) done(name string) func([]byte, error) {
	return func(answer []byte, err error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if err != nil {
			answer = fmt.Appendf(nil, "error %d", gearsfs.CodeOf(err))
		}
		o.all = append(o.all, name+": "+string(answer))
	}
}

func (o *outcomes) take() []string {
	synctest.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	defer func() { o.all = nil }()
	return o.all
}

func failed(name string, err *gearsfs.Error) string {
	return fmt.Sprintf("%s: error %d", name, err.Code)
}

func TestAnswersInAnyOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept keeper
		var got outcomes
		a, b := pair(t, Config{}, serving(&kept))
		for _, name := range []string{"x", "y", "z"} {
			a.Start([]byte(name), got.done(name))
		}
		calls := kept.take()
		require.Len(t, calls, 3)
		for _, i := range []int{2, 0, 1} {
			require.Equal(t, b, calls[i].Conn())
			calls[i].Reply(append(calls[i].Body(), '!'))
			calls[i].Reply([]byte("a second answer is dropped"))
		}
		require.Equal(t, []string{"z: z!", "x: x!", "y: y!"}, got.take())
		require.NoError(t, a.Close())
		require.NoError(t, b.Close())
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept keeper
		var got outcomes
		a, b := pair(t, Config{}, serving(&kept))
		defer b.Close()
		defer a.Close()

		// The far side is told once, and its answer is the outcome.
		p := a.Start(nil, got.done("p"))
		call := kept.take()[0]
		told := 0
		call.OnCancel(func() { told++ })
		p.Cancel()
		p.Cancel()
		synctest.Wait()
		require.Equal(t, 1, told)
		require.Empty(t, got.take())
		call.Reply([]byte("too late"))
		require.Equal(t, []string{"p: too late"}, got.take())
		p.Cancel()

		// Who asks afterwards is told at once.
		p = a.Start(nil, got.done("q"))
		p.Cancel()
		call = kept.take()[0]
		call.OnCancel(func() { call.Reply([]byte("stopped")) })
		call.OnCancel(func() { t.Error("after the answer") })
		require.Equal(t, []string{"q: stopped"}, got.take())

		// Who was answered is not told.
		p = a.Start(nil, got.done("r"))
		call = kept.take()[0]
		call.OnCancel(func() { t.Error("after the answer") })
		call.Reply(nil)
		require.Equal(t, []string{"r: "}, got.take())
		p.Cancel()
		synctest.Wait()
	})
}

// However often a call is cancelled, the peer is told once.
func TestCancelIsSentOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, w := meetWire(t, Config{}, true)
		p := c.Start(nil, func([]byte, error) {})
		p.Cancel()
		p.Cancel()
		c.Start(nil, func([]byte, error) {})
		for _, want := range []frame{{id: 1, kind: kindRequest}, {id: 1, kind: kindCancel}, {id: 2, kind: kindRequest}} {
			require.Equal(t, want, w.receive())
		}
		w.Close()
		<-c.Done()
	})
}

func TestCallWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept keeper
		a, b := pair(t, Config{}, serving(&kept))
		defer b.Close()
		defer a.Close()

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		go func() {
			call := kept.take()[0]
			call.OnCancel(func() { call.Reply([]byte("applied all the same")) })
		}()
		answer, err := a.Call(ctx, nil)
		require.NoError(t, err)
		require.Equal(t, "applied all the same", string(answer))
		require.ErrorIs(t, ctx.Err(), context.DeadlineExceeded)

		_, err = a.Call(ctx, nil)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Empty(t, kept.take(), "it was never sent")
	})
}

// When the connection goes, callers and servers of calls in flight get to know.
func TestLostConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept keeper
		x, y := net.Pipe()
		a, b := connect(t, x, y, Config{}, serving(&kept))
		ended := make(chan error)
		go func() {
			_, err := a.Call(t.Context(), nil)
			ended <- err
		}()
		call := kept.take()[0]
		told := make(chan struct{})
		call.OnCancel(func() { close(told) })
		require.NoError(t, x.Close())
		err := <-ended
		require.ErrorIs(t, err, ErrLost)
		require.ErrorIs(t, err, gearsfs.ErrNoNode)
		<-told
		now := false
		call.OnCancel(func() { now = true })
		require.True(t, now)
		call.Reply([]byte("to nobody"))
		<-a.Done()
		<-b.Done()

		_, err = a.Call(t.Context(), nil)
		require.ErrorIs(t, err, gearsfs.ErrNoNode)
		require.False(t, errors.Is(err, ErrLost), "it was not sent")
		require.NoError(t, a.Close())
	})
}

// A handler need not exist, and can't answer more than a frame.
func TestUnserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		small := Config{FrameBytesMax: helloBytesMax}
		small.NewHandler = func(*Conn) (Handler, error) {
			return HandlerFunc(func(call *Call) { call.Reply(make([]byte, helloBytesMax)) }), nil
		}
		a, b := pair(t, Config{}, small)
		_, err := a.Call(t.Context(), nil)
		require.ErrorIs(t, err, gearsfs.ErrTooBig)
		_, err = a.Call(t.Context(), make([]byte, helloBytesMax))
		require.ErrorIs(t, err, gearsfs.ErrTooBig)
		_, err = a.Call(t.Context(), make([]byte, helloBytesMax-overheadBytes))
		require.ErrorIs(t, err, gearsfs.ErrTooBig, "the answer")
		_, err = b.Call(t.Context(), nil)
		require.ErrorIs(t, err, gearsfs.ErrUnknownOp)
		require.NoError(t, a.Close())
		require.NoError(t, b.Close())
	})
}

// Calls beyond the window wait in order; Start's are bounded, Call's have
// goroutines of their own.
func TestCallWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept keeper
		var got outcomes
		served := serving(&kept)
		served.CallsMax = 2
		a, b := pair(t, Config{CallsMax: 3}, served)
		defer b.Close()
		defer a.Close()
		var pending []*Pending
		for i := range 6 {
			pending = append(pending, a.Start([]byte{'0' + byte(i)}, got.done(fmt.Sprint(i))))
		}
		require.Equal(t, []string{failed("5", gearsfs.ErrOverload)}, got.take(), "2 are sent, 3 wait")
		called := make(chan error)
		go func() {
			_, err := a.Call(t.Context(), []byte("6"))
			called <- err
		}()
		ctx, giveUp := context.WithCancel(t.Context())
		go func() {
			_, err := a.Call(ctx, []byte("given up"))
			called <- err
		}()
		synctest.Wait()
		giveUp()
		require.ErrorIs(t, <-called, context.Canceled)
		pending[4].Cancel()
		require.Equal(t, []string{failed("4", gearsfs.ErrCancelled)}, got.take())

		var order []string
		for calls := kept.take(); len(calls) > 0; calls = kept.take() {
			require.LessOrEqual(t, len(calls), 2)
			for _, call := range calls {
				order = append(order, string(call.Body()))
				call.Reply(nil)
			}
		}
		require.Equal(t, []string{"0", "1", "2", "3", "6"}, order)
		require.NoError(t, <-called)
	})
}

// The bytes under way are bounded by the window, and are given back when the
// handler has them, not when it answers.
func TestByteWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const frameBytes = helloBytesMax
		a, w := meetWire(t, Config{FrameBytesMax: frameBytes, WindowBytes: 2 * frameBytes}, true)
		var got outcomes
		body := make([]byte, 6000)
		for i := range 5 {
			a.Start(body, got.done(fmt.Sprint(i)))
		}
		require.Equal(t, []string{failed("4", gearsfs.ErrOverload)}, got.take(), "2 are sent, 2 wait")
		a.Start([]byte("small"), got.done("small"))
		require.Equal(t, uint64(1), w.receive().id)
		require.Equal(t, uint64(2), w.receive().id)
		w.send(frame{kind: kindWindow, body: binary.BigEndian.AppendUint64(nil, 2000)})
		require.Equal(t, uint64(3), w.receive().id)
		for id := range uint64(3) {
			w.send(frame{id: id + 1, kind: kindResponse})
		}
		synctest.Wait()
		w.send(frame{kind: kindWindow, body: binary.BigEndian.AppendUint64(nil, 16000)})
		require.Len(t, w.receive().body, 6000)
		require.Equal(t, "small", string(w.receive().body), "it does not overtake")
		w.send(frame{id: 5, kind: kindResponse})
		synctest.Wait()
		w.Close()
		<-a.Done()
		require.Equal(t, []string{"0: ", "1: ", "2: ", "small: ", failed("3", gearsfs.ErrNoNode)}, got.take())
	})
}

// A peer gives credit back while its handler keeps all the calls.
func TestByteWindowIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept keeper
		served := serving(&kept)
		served.FrameBytesMax, served.WindowBytes = helloBytesMax, 2*helloBytesMax
		a, b := pair(t, Config{FrameBytesMax: helloBytesMax}, served)
		for i := range 100 {
			go a.Call(t.Context(), bytes.Repeat([]byte{byte(i)}, 1000+50*i)) //nolint:errcheck // ends with the connection
		}
		require.Len(t, kept.take(), 100)
		cut, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, a.Shutdown(cut), context.Canceled)
		<-b.Done()
	})
}

// Large requests that are being served leave room for small ones.
func TestHeldBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept keeper
		served := serving(&kept)
		served.FrameBytesMax, served.HeldBytesMax = helloBytesMax, 2*helloBytesMax
		a, b := pair(t, Config{FrameBytesMax: helloBytesMax}, served)
		defer b.Close()
		defer a.Close()
		var got outcomes
		for i := range 3 {
			a.Start(make([]byte, 8000), got.done(fmt.Sprint(i)))
		}
		a.Start(make([]byte, heldFreeBytes), got.done("small"))
		require.Equal(t, []string{failed("2", gearsfs.ErrOverload)}, got.take())
		calls := kept.take()
		require.Len(t, calls, 3)
		calls[0].Reply(nil)
		a.Start(make([]byte, 4100), got.done("next"))
		require.Len(t, kept.take(), 1)
		for _, call := range calls {
			call.Reply(nil)
		}
		require.Equal(t, []string{"0: ", "1: ", "small: "}, got.take())
		a.Shutdown(func() context.Context { //nolint:errcheck // one is still in flight
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			return ctx
		}())
		require.Len(t, got.take(), 1)
	})
}

// Start and Cancel call nothing back on the caller's goroutine, which may hold
// what done needs.
func TestStartMayHoldLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		served := serving(&keeper{})
		served.CallsMax = 1
		a, b := pair(t, Config{CallsMax: 1}, served)
		var mu sync.Mutex
		ends := 0
		done := func([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			ends++
		}
		mu.Lock()
		a.Start(nil, done)
		waits := a.Start(nil, done)
		a.Start(nil, done) // overload
		waits.Cancel()
		mu.Unlock()
		synctest.Wait()
		mu.Lock()
		require.Equal(t, 2, ends)
		a.fail(gearsfs.ErrNoNode, false)
		a.Start(nil, done)
		mu.Unlock()
		<-a.Done()
		<-b.Done()
		synctest.Wait()
		require.Equal(t, 4, ends)
	})
}

// TestBigBodies sends the largest frames both ways at once.
func TestBigBodies(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		c := dial(t, serveOn(t, network, serving(echo)), Config{})
		var wait sync.WaitGroup
		for i, size := range []int{16 << 20, 32<<20 - overheadBytes, 100_000, 0} {
			wait.Go(func() {
				body := bytes.Repeat([]byte{byte(i + 1)}, size)
				answer, err := c.Call(t.Context(), body)
				if err != nil || !bytes.Equal(body, answer) {
					t.Errorf("%d bytes: %d came back, %v", size, len(answer), err)
				}
			})
		}
		wait.Wait()
	}
}

// Bodies arrive in the order of Start, small ones never before large ones.
func TestOrder(t *testing.T) {
	var mu sync.Mutex
	var order []uint32
	addr := serveOn(t, "unix", serving(HandlerFunc(func(call *Call) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, binary.BigEndian.Uint32(call.Body()))
		call.Reply(nil)
	})))
	c := dial(t, addr, Config{CallsMax: 7})
	slots := make(chan struct{}, 14) // half of them wait to be sent
	for i := range 2000 {
		body := make([]byte, 4+i*7919%50_000)
		binary.BigEndian.PutUint32(body, uint32(i))
		slots <- struct{}{}
		c.Start(body, func(_ []byte, err error) {
			if err != nil {
				t.Errorf("call %d: %v", i, err)
			}
			<-slots
		})
	}
	for range cap(slots) {
		slots <- struct{}{}
	}
	mu.Lock()
	defer mu.Unlock()
	require.True(t, slices.IsSorted(order))
	require.Len(t, order, 2000)
}
