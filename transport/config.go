package transport

import (
	"crypto/tls"
	"time"

	"github.com/gearsfs/gearsfs"
)

// Config says how one end of a connection behaves. The zero Config is usable:
// it serves nothing and has the default limits. A Config is not changed after
// it was passed in and may be shared by connections.
type Config struct {
	// NewHandler returns who serves the calls of the peer. It is called once
	// per connection when both ends have said hello and before a call is read;
	// Peer, Identity and Features can be asked, calls can be started once it
	// has returned. An error refuses the peer, which gets it from Dial. Where
	// NewHandler or the Handler is nil, calls are answered with
	// gearsfs.ErrUnknownOp.
	NewHandler func(c *Conn) (Handler, error)

	// TLS encrypts TCP connections, with TLS 1.3 or later; nil leaves them
	// plain. Unix sockets are never encrypted.
	TLS *tls.Config

	// Identity is shown to the peer in HELLO, at most IdentityBytesMax bytes,
	// and means nothing to this package. Features are bits, likewise; the two
	// highest are this package's.
	Identity []byte
	Features uint64

	// Unannounced is for a process that does little but calls: its sockets are read
	// and written by system calls that Go's scheduler is not told of. They do not
	// wait, so it could do nothing meanwhile; but it would wake its watchdog, which
	// then looks around every 20 µs. Where other system calls wake that anyway, as
	// those of a node do that writes to its disk, it is better left awake.
	Unannounced bool

	// Shared is for connections of which many may be busy at once, each with little:
	// one goroutine of the process reads from all of them, where the other end says
	// Shared too and the socket is not encrypted. A Handler that takes long holds up
	// the others, for 8 ms at the most; then another goroutine reads from those.
	Shared bool

	// OneWay is for an end that sends all the time and is sent little. Go's runtime
	// asks the kernel for room to write along with what comes, and a unix socket has
	// room, and tells so, each time that the peer has read: a wake-up for nothing with
	// each message. So a poller of the connection's own reads from such a socket.
	OneWay bool

	// FrameBytesMax bounds one frame, overheadBytes included; 0 is 32 MiB,
	// which holds gearsfs.BatchRecordsMax records of gearsfs.BatchBytesMax bytes with
	// the longest names. The smaller of both ends' values counts.
	FrameBytesMax int

	// CallsMax bounds the calls in flight, each way; 0 is 16384. The smaller of
	// both ends' values counts.
	CallsMax int

	// WindowBytes bounds the requests that are under way to a peer and not yet
	// handed to its Handler, and those that Start keeps beyond that; 0 is
	// 64 MiB or twice FrameBytesMax, which is the least.
	WindowBytes int

	// HeldBytesMax bounds the requests being served: one that is larger than
	// 4 KiB and would bring them above it is refused with gearsfs.ErrOverload. 0 is
	// 256 MiB.
	HeldBytesMax int

	// UnreadBytesMax bounds the answers that the peer has not read: above a
	// quarter of it no further call is served, above it the connection is cut
	// with gearsfs.ErrOverload. 0 is 256 MiB.
	UnreadBytesMax int

	// NoticeBytesMax bounds the notices that are not written yet: beyond it
	// Notify returns gearsfs.ErrOverload. 0 is 64 MiB or FrameBytesMax, which is
	// the least.
	NoticeBytesMax int

	// HandshakeTimeout bounds connecting, TLS and HELLO together; 0 is 5 s.
	HandshakeTimeout time.Duration

	// IdleTimeout is how long a peer may be silent before the connection counts
	// as lost; 0 is 3 s. It is asked for a sign of life after PingInterval;
	// 0 is a quarter of IdleTimeout, a third is the most.
	IdleTimeout  time.Duration
	PingInterval time.Duration

	// CloseTimeout is how long Close waits for calls in flight; 0 is 2 s.
	CloseTimeout time.Duration
}

// IdentityBytesMax bounds Config.Identity.
const IdentityBytesMax = 4096

// heldFreeBytes is the size up to which a request is never refused for the
// bytes of the others: what lets them finish (a take, a cancel) must get through.
const heldFreeBytes = 4 << 10

// frameBytesLimit bounds what Config.FrameBytesMax may be.
const frameBytesLimit = 1 << 30

// withDefaults returns cfg with its zeros filled in, or gearsfs.ErrInvalid.
func (cfg Config) withDefaults() (Config, error) {
	setDefault(&cfg.FrameBytesMax, 32<<20)
	setDefault(&cfg.CallsMax, 16384)
	setDefault(&cfg.WindowBytes, max(64<<20, 2*cfg.FrameBytesMax))
	setDefault(&cfg.HeldBytesMax, 256<<20)
	setDefault(&cfg.UnreadBytesMax, 256<<20)
	setDefault(&cfg.NoticeBytesMax, max(64<<20, cfg.FrameBytesMax))
	setDefault(&cfg.HandshakeTimeout, 5*time.Second)
	setDefault(&cfg.IdleTimeout, 3*time.Second)
	setDefault(&cfg.PingInterval, cfg.IdleTimeout/4)
	setDefault(&cfg.CloseTimeout, 2*time.Second)
	switch {
	case len(cfg.Identity) > IdentityBytesMax:
		return cfg, gearsfs.ErrInvalid.Because("an identity of %d bytes, at most %d are possible", len(cfg.Identity), IdentityBytesMax)
	case cfg.FrameBytesMax < helloBytesMax || cfg.FrameBytesMax > frameBytesLimit:
		return cfg, gearsfs.ErrInvalid.Because("FrameBytesMax %d is not between %d and %d", cfg.FrameBytesMax, helloBytesMax, frameBytesLimit)
	case cfg.CallsMax < 1:
		return cfg, gearsfs.ErrInvalid.Because("CallsMax %d is not positive", cfg.CallsMax)
	case cfg.WindowBytes < 2*cfg.FrameBytesMax:
		return cfg, gearsfs.ErrInvalid.Because("WindowBytes %d is less than two frames", cfg.WindowBytes)
	case min(cfg.HeldBytesMax, cfg.UnreadBytesMax, cfg.NoticeBytesMax) < cfg.FrameBytesMax:
		return cfg, gearsfs.ErrInvalid.Because("HeldBytesMax, UnreadBytesMax and NoticeBytesMax must hold a frame")
	case cfg.Features&featuresOwn != 0:
		return cfg, gearsfs.ErrInvalid.Because("Features %#x contain one of the two highest bits", cfg.Features)
	case cfg.HandshakeTimeout < 0 || cfg.CloseTimeout < 0 || cfg.PingInterval <= 0 || cfg.PingInterval > cfg.IdleTimeout/3:
		return cfg, gearsfs.ErrInvalid.Because("timeouts must be positive, PingInterval at most a third of IdleTimeout")
	}
	return cfg, nil
}

func setDefault[T int | time.Duration](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}
