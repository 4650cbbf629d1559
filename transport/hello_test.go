package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// wire is an end of a connection that is played by the test, frame by frame.
type wire struct {
	t testing.TB
	net.Conn
	in *frameReader
}

func newWire(t testing.TB, nc net.Conn) *wire {
	return &wire{t, nc, newFrameReader(64 << 20)}
}

func (w *wire) send(frames ...frame) {
	var all []byte
	for _, f := range frames {
		all = f.append(all)
	}
	if _, err := w.Write(all); err != nil {
		w.t.Errorf("send: %v", err)
	}
}

// receive returns the next frame, a zero frame at the end.
func (w *wire) receive() frame {
	for {
		f, ok, err := w.in.next()
		if err == nil && ok {
			return f
		}
		if err == nil {
			_, err = w.in.fill(w)
		}
		if err != nil {
			return frame{}
		}
	}
}

// plainHello is a HELLO that suits every Config.
func plainHello() frame {
	h := hello{callsMax: 1 << 20, windowBytes: 1 << 30, frameBytes: 1 << 24}
	return frame{kind: kindHello, body: h.append(nil)}
}

func helloOfVersion(version uint32) frame {
	f := plainHello()
	binary.BigEndian.PutUint32(f.body[len(magic):], version)
	return f
}

// meetWire connects a Conn with an end that the test plays.
func meetWire(t testing.TB, cfg Config, caller bool) (*Conn, *wire) {
	a, b := net.Pipe()
	w := newWire(t, b)
	go func() {
		if caller {
			w.receive()
		}
		w.send(plainHello())
	}()
	var c *Conn
	var err error
	if caller {
		c, err = Connect(context.Background(), a, cfg)
	} else {
		ready := make(chan struct{})
		go func() { defer close(ready); w.receive() }()
		c, err = Accept(context.Background(), a, cfg)
		<-ready
	}
	require.NoError(t, err)
	return c, w
}

func TestHelloTellsWhoTheyAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, Config{Identity: []byte("one"), Features: 5}, Config{Identity: []byte("two")})
		require.Equal(t, "two", string(a.Identity()))
		require.Equal(t, "one", string(b.Identity()))
		require.Equal(t, uint64(5), b.Features())
		require.Zero(t, a.Features())
		require.NoError(t, a.Close())
		require.NoError(t, b.Close())
	})
}

// TestStrangers says wrong things to both ends of a handshake, and hangs up.
func TestStrangers(t *testing.T) {
	random := make([]byte, 5000)
	rand.NewChaCha8([32]byte{1}).Read(random)
	damaged := plainHello().append(nil)
	damaged[20] ^= 1
	short := plainHello()
	short.body = short.body[:len(magic)+6]
	tight := hello{callsMax: 1, windowBytes: helloBytesMax, frameBytes: helloBytesMax}
	for _, c := range []struct {
		name string
		says []byte
		want error
	}{
		{"HTTP request", []byte("GET / HTTP/1.1\r\nHost: here\r\n\r\n"), gearsfs.ErrProtocol},
		{"HTTP answer", []byte("HTTP/1.1 400 Bad Request\r\n\r\n"), gearsfs.ErrProtocol},
		{"TLS hello", []byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, gearsfs.ErrProtocol},
		{"random", random, gearsfs.ErrProtocol},
		{"zeros", make([]byte, 100), gearsfs.ErrProtocol},
		{"nothing", nil, gearsfs.ErrNoNode},
		{"half a length", []byte{0, 0}, gearsfs.ErrProtocol},
		{"half a frame", plainHello().append(nil)[:30], gearsfs.ErrProtocol},
		{"damaged", damaged, gearsfs.ErrProtocol},
		{"another magic", frame{kind: kindHello, body: []byte("GearsGS\n\x00\x00\x00\x01")}.append(nil), gearsfs.ErrProtocol},
		{"short hello", short.append(nil), gearsfs.ErrProtocol},
		{"window less than two frames", frame{kind: kindHello, body: tight.append(nil)}.append(nil), gearsfs.ErrProtocol},
		{"request first", frame{kind: kindRequest}.append(nil), gearsfs.ErrProtocol},
		{"older", helloOfVersion(0).append(nil), gearsfs.ErrVersion},
		{"newer", helloOfVersion(protocolVersion + 1).append(nil), gearsfs.ErrVersion},
		{"newer, other fields", frame{kind: kindHello, body: helloOfVersion(9).body[:len(magic)+4]}.append(nil), gearsfs.ErrVersion},
		{"refusal", goaway(gearsfs.ErrAccess).append(nil), gearsfs.ErrAccess},
	} {
		for name, shake := range map[string]func(context.Context, net.Conn, Config) (*Conn, error){"called": Accept, "caller": Connect} {
			t.Run(c.name+" to "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a, b := net.Pipe()
					go io.Copy(io.Discard, b) //nolint:errcheck // ends with the pipe
					go func() {
						b.Write(c.says) //nolint:errcheck // the other end may have had enough
						b.Close()
					}()
					began := time.Now()
					_, err := shake(t.Context(), a, Config{})
					require.ErrorIs(t, err, c.want)
					require.Zero(t, time.Since(began), "without waiting for the timeout")
				})
			})
		}
	}
}

// A peer of another version gets our HELLO, so that it learns the version too.
func TestVersionIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		w := newWire(t, b)
		go w.send(helloOfVersion(7))
		go func() {
			_, err := Accept(t.Context(), a, Config{})
			if !errors.Is(err, gearsfs.ErrVersion) {
				t.Errorf("Accept: %v", err)
			}
		}()
		f := w.receive()
		require.Equal(t, kindHello, f.kind)
		_, err := parseHello(f.body)
		require.NoError(t, err)
		require.Zero(t, w.receive().kind)
	})
}

// Garbage gets no answer at all.
func TestGarbageIsNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		go b.Write([]byte("GET / HTTP/1.1\r\n\r\n")) //nolint:errcheck // not read to its end
		go Accept(t.Context(), a, Config{})          //nolint:errcheck // TestStrangers
		answer, err := io.ReadAll(b)
		require.NoError(t, err)
		require.Empty(t, answer)
	})
}

func TestHandshakeTimeout(t *testing.T) {
	for name, shake := range map[string]func(context.Context, net.Conn, Config) (*Conn, error){"called": Accept, "caller": Connect} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				go io.Copy(io.Discard, b) //nolint:errcheck // ends with the pipe
				began := time.Now()
				_, err := shake(t.Context(), a, Config{})
				require.ErrorIs(t, err, gearsfs.ErrNoNode)
				require.Equal(t, 5*time.Second, time.Since(began))

				a, b = net.Pipe()
				go io.Copy(io.Discard, b) //nolint:errcheck // ends with the pipe
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err = shake(ctx, a, Config{})
				require.ErrorIs(t, err, context.DeadlineExceeded)
			})
		})
	}
}

// Who refuses a peer says why, and the peer's Dial returns it.
func TestNewHandlerRefuses(t *testing.T) {
	refusing := Config{NewHandler: func(c *Conn) (Handler, error) {
		return nil, gearsfs.ErrAccess.Because("no %s here", c.Identity())
	}}
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		accepted := make(chan error)
		go func() {
			_, err := Accept(t.Context(), b, refusing)
			accepted <- err
		}()
		_, err := Connect(t.Context(), a, Config{Identity: []byte("strangers")})
		require.ErrorIs(t, err, gearsfs.ErrAccess)
		require.EqualError(t, err, "no strangers here")
		require.ErrorIs(t, <-accepted, gearsfs.ErrAccess)

		a, b = net.Pipe()
		var called *Conn
		met := make(chan error)
		go func() {
			var err error
			called, err = Accept(t.Context(), b, Config{Identity: []byte("strangers")})
			met <- err
		}()
		_, err = Connect(t.Context(), a, refusing)
		require.ErrorIs(t, err, gearsfs.ErrAccess)
		require.NoError(t, <-met)
		<-called.Done()
		require.ErrorIs(t, called.Err(), gearsfs.ErrAccess)
	})
}

func TestConfigIsChecked(t *testing.T) {
	for _, bad := range []Config{
		{Identity: make([]byte, IdentityBytesMax+1)},
		{FrameBytesMax: helloBytesMax - 1},
		{FrameBytesMax: frameBytesLimit + 1, WindowBytes: 4 * frameBytesLimit},
		{CallsMax: -1},
		{FrameBytesMax: 1 << 20, WindowBytes: 1 << 20},
		{HeldBytesMax: 1},
		{UnreadBytesMax: 1},
		{NoticeBytesMax: 1},
		{Features: 1 << 63},
		{PingInterval: time.Second, IdleTimeout: 2 * time.Second},
		{HandshakeTimeout: -1},
	} {
		_, err := Dial(t.Context(), Addr{"tcp", "127.0.0.1:1"}, bad)
		require.ErrorIs(t, err, gearsfs.ErrInvalid, "%+v", bad)
	}
	for _, good := range []Config{
		{FrameBytesMax: helloBytesMax},
		{FrameBytesMax: frameBytesLimit, HeldBytesMax: frameBytesLimit, UnreadBytesMax: frameBytesLimit},
		{Identity: make([]byte, IdentityBytesMax)},
	} {
		_, err := good.withDefaults()
		require.NoError(t, err)
	}
}

// TestRulesOfTheConversation has a peer break each of them.
func TestRulesOfTheConversation(t *testing.T) {
	small := Config{CallsMax: 2, FrameBytesMax: helloBytesMax, NewHandler: func(*Conn) (Handler, error) {
		return HandlerFunc(func(*Call) {}), nil
	}}
	for _, c := range []struct {
		name string
		says []frame
		want error
	}{
		{"unknown kind", []frame{{kind: 10}}, gearsfs.ErrProtocol},
		{"notice", []frame{{id: 1, kind: kindNotice, body: []byte("?")}, {id: 3, kind: kindPing}}, nil},
		{"unknown but ignorable", []frame{{kind: 10 | kindIgnorable, body: []byte("?")}, {id: 3, kind: kindPing}}, nil},
		{"second hello", []frame{plainHello()}, gearsfs.ErrProtocol},
		{"answer to no call", []frame{{id: 1, kind: kindResponse}}, gearsfs.ErrProtocol},
		{"failure of no call", []frame{{id: 1, kind: kindFailure, body: appendError(nil, gearsfs.ErrBusy)}}, gearsfs.ErrProtocol},
		{"empty failure", []frame{{id: 1, kind: kindFailure}}, gearsfs.ErrProtocol},
		{"cancel of no call", []frame{{id: 1, kind: kindCancel}, {id: 3, kind: kindPing}}, nil},
		{"same id", []frame{{id: 1, kind: kindRequest}, {id: 1, kind: kindRequest}}, gearsfs.ErrProtocol},
		{"too many calls", []frame{{id: 1, kind: kindRequest}, {id: 2, kind: kindRequest}, {id: 3, kind: kindRequest}}, gearsfs.ErrProtocol},
		{"too large", []frame{{id: 1, kind: kindRequest, body: make([]byte, helloBytesMax)}}, gearsfs.ErrProtocol},
		{"window never used", []frame{{kind: kindWindow, body: binary.BigEndian.AppendUint64(nil, 1)}}, gearsfs.ErrProtocol},
		{"short window", []frame{{kind: kindWindow}}, gearsfs.ErrProtocol},
		{"short goaway", []frame{{kind: kindGoaway}}, gearsfs.ErrProtocol},
		{"angry goaway", []frame{goaway(gearsfs.ErrOverload)}, gearsfs.ErrOverload},
		{"pings", []frame{{id: 1, kind: kindPing}, {id: 2, kind: kindPing, body: []byte("more")}, {id: 3, kind: kindPing}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn, w := meetWire(t, small, false)
				go func() {
					for _, f := range c.says {
						w.Write(f.append(nil)) //nolint:errcheck // it may have hung up
					}
				}()
				f := w.receive()
				if c.want == nil {
					require.Equal(t, frame{id: 3, kind: kindPong}, lastPong(w, f))
					require.NoError(t, conn.Err())
					w.Close()
				} else {
					for w.receive().kind != 0 {
					}
				}
				<-conn.Done()
				if c.want != nil {
					require.ErrorIs(t, conn.Err(), c.want)
				}
				if errors.Is(c.want, gearsfs.ErrProtocol) && c.name != "short goaway" {
					require.Equal(t, kindGoaway, f.kind, "it says why")
					require.ErrorIs(t, goawayError(f.body), gearsfs.ErrProtocol)
				}
			})
		})
	}
}

// lastPong reads until the PONG of id 3: those before may be left out.
func lastPong(w *wire, f frame) frame {
	for f.kind == kindPong && f.id < 3 {
		f = w.receive()
	}
	return f
}

func TestErrorsTravel(t *testing.T) {
	long := gearsfs.ErrBusy.Because("%s", bytes.Repeat([]byte("x"), 5000))
	code, reason, err := parseError(appendError(nil, long))
	require.NoError(t, err)
	require.Equal(t, gearsfs.ErrBusy.Code, code)
	require.Len(t, reason, reasonBytesMax)
	require.NoError(t, goawayError(appendError(nil, nil)))
	require.ErrorIs(t, goawayError(appendError(nil, gearsfs.ErrFull.Because("why"))), gearsfs.ErrFull)
}
