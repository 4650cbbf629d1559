package transport

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"syscall"

	"github.com/gearsfs/gearsfs"
)

// magic begins the body of every HELLO, of this and of every other version.
const magic = "GearsFS\n"

// protocolVersion is raised when an end that knows only the older one could not
// understand the newer one.
const protocolVersion = 1

// helloBytesMax bounds frames until the peer has said hello.
const helloBytesMax = 8 << 10

// hello is what an end tells about itself.
type hello struct {
	features    uint64
	callsMax    uint32
	windowBytes uint64
	frameBytes  uint32
	identity    []byte
}

const helloFixedBytes = len(magic) + 4 + 8 + 4 + 8 + 4 + 2

func (h hello) append(dst []byte) []byte {
	dst = append(dst, magic...)
	dst = binary.BigEndian.AppendUint32(dst, protocolVersion)
	dst = binary.BigEndian.AppendUint64(dst, h.features)
	dst = binary.BigEndian.AppendUint32(dst, h.callsMax)
	dst = binary.BigEndian.AppendUint64(dst, h.windowBytes)
	dst = binary.BigEndian.AppendUint32(dst, h.frameBytes)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(h.identity)))
	return append(dst, h.identity...)
}

// parseHello decodes what append encoded; bytes behind it are for later
// versions. Errors: gearsfs.ErrProtocol, gearsfs.ErrVersion.
func parseHello(body []byte) (hello, error) {
	if len(body) < len(magic)+4 || string(body[:len(magic)]) != magic {
		return hello{}, gearsfs.ErrProtocol
	}
	if v := binary.BigEndian.Uint32(body[len(magic):]); v != protocolVersion {
		return hello{}, gearsfs.ErrVersion.Because("the peer speaks version %d of the protocol, this is version %d", v, protocolVersion)
	}
	if len(body) < helloFixedBytes {
		return hello{}, gearsfs.ErrProtocol
	}
	b := body[len(magic)+4:]
	h := hello{
		features:    binary.BigEndian.Uint64(b),
		callsMax:    binary.BigEndian.Uint32(b[8:]),
		windowBytes: binary.BigEndian.Uint64(b[12:]),
		frameBytes:  binary.BigEndian.Uint32(b[20:]),
	}
	n := int(binary.BigEndian.Uint16(b[24:]))
	if b = b[26:]; n > len(b) || n > IdentityBytesMax || h.callsMax == 0 || h.callsMax > 1<<31-1 || h.frameBytes > frameBytesLimit || h.frameBytes < helloBytesMax || h.windowBytes < 2*uint64(h.frameBytes) {
		return hello{}, gearsfs.ErrProtocol
	}
	h.identity = b[:n:n]
	return h, nil
}

// errHandshakeTimeout is the cause with which a handshake's context ends by
// Config.HandshakeTimeout.
var errHandshakeTimeout = errors.New("handshake timeout")

// ErrRefused is in the chain of Dial's error where the machine can be reached,
// but nobody listens: the process that did is gone.
var ErrRefused = errors.New("nobody listens")

// Dial connects to addr and says hello. It waits for both as long as ctx and
// Config.HandshakeTimeout allow. Errors: gearsfs.ErrNoNode where nobody answers,
// gearsfs.ErrProtocol, gearsfs.ErrVersion, gearsfs.ErrAccess where a certificate is
// refused, what the peer's NewHandler refused with, or ctx's error.
func Dial(ctx context.Context, addr Addr, cfg Config) (*Conn, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeoutCause(ctx, cfg.HandshakeTimeout, errHandshakeTimeout)
	defer cancel()
	var d net.Dialer
	sock, err := d.DialContext(limited, addr.Network, addr.Address)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, fs.ErrPermission):
		return nil, gearsfs.ErrAccess.Because("connect to %s: %v", addr, unwrapOp(err))
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %w", ErrRefused, gearsfs.ErrNoNode.Because("connect to %s: %v", addr, unwrapOp(err)))
	case err != nil:
		return nil, gearsfs.ErrNoNode.Because("connect to %s: %v", addr, unwrapOp(err))
	}
	if cfg.TLS != nil && cfg.TLS.ServerName == "" && addr.Network == "tcp" {
		host, _, err := net.SplitHostPort(addr.Address)
		if err != nil {
			return nil, errors.Join(err, sock.Close())
		}
		cfg.TLS = cfg.TLS.Clone()
		cfg.TLS.ServerName = host
	}
	return open(limited, sock, cfg, true)
}

// Connect says hello over sock, which it owns from then on, as the end that
// called. It returns the errors of Dial.
func Connect(ctx context.Context, sock net.Conn, cfg Config) (*Conn, error) {
	return openWithTimeout(ctx, sock, cfg, true)
}

// Accept says hello over sock, which it owns from then on, as the end that was
// called. It returns the errors of Dial, or that of its own NewHandler.
func Accept(ctx context.Context, sock net.Conn, cfg Config) (*Conn, error) {
	return openWithTimeout(ctx, sock, cfg, false)
}

func openWithTimeout(ctx context.Context, sock net.Conn, cfg Config, caller bool) (*Conn, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, errors.Join(err, sock.Close())
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cfg.HandshakeTimeout, errHandshakeTimeout)
	defer cancel()
	return open(ctx, sock, cfg, caller)
}

// open makes a connection of sock, or closes it. When ctx ends the handshake
// ends: the socket's closing interrupts what waits.
func open(ctx context.Context, sock net.Conn, cfg Config, caller bool) (*Conn, error) {
	stop := context.AfterFunc(ctx, func() { sock.Close() }) //nolint:errcheck // the handshake reports it
	c := newConn(sock, cfg)
	err := c.handshake(ctx, caller)
	if !stop() {
		if err = context.Cause(ctx); err == errHandshakeTimeout {
			err = gearsfs.ErrNoNode.Because("%s did not say hello within %v", sock.RemoteAddr(), cfg.HandshakeTimeout)
		}
		c.discard()
		return nil, err
	}
	if err != nil {
		c.discard()
		return nil, err
	}
	c.start()
	return c, nil
}

// handshake does what comes before the first call. Whoever was called answers
// only to a proper HELLO; who refuses sends a GOAWAY, the called end in the place
// of its HELLO. The calling end sends nothing else before it has read the
// answer, so that closing the socket never destroys one that is on its way.
func (c *Conn) handshake(ctx context.Context, caller bool) error {
	if err := c.startTLS(ctx, caller); err != nil {
		return err
	}
	var err error
	if c.peer, err = peerOf(c.nc, c.sock); err != nil {
		return fmt.Errorf("ask who the peer is: %w", err)
	}
	mine := frame{kind: kindHello, body: hello{
		features:    c.features(),
		callsMax:    uint32(min(c.cfg.CallsMax, 1<<31-1)),
		windowBytes: uint64(c.cfg.WindowBytes),
		frameBytes:  uint32(c.cfg.FrameBytesMax),
		identity:    c.cfg.Identity,
	}.append(nil)}
	if caller {
		if err := c.say(mine); err != nil {
			return err
		}
	}
	theirs, err := c.readHello()
	switch {
	case err == nil:
		if err := c.meet(theirs); err != nil {
			return errors.Join(err, c.say(goaway(err)))
		}
	case errors.Is(err, gearsfs.ErrVersion):
	default:
		return err
	}
	if !caller {
		return errors.Join(err, c.say(mine))
	}
	return err
}

// meet takes over what the peer said about itself, and gets the handler for it.
func (c *Conn) meet(theirs hello) (err error) {
	c.theirs = theirs
	c.in.bytesMax = c.cfg.FrameBytesMax
	c.frameBytesMax = min(c.cfg.FrameBytesMax, int(theirs.frameBytes))
	c.callsMax = min(c.cfg.CallsMax, int(theirs.callsMax))
	c.windowBytes = int(min(uint64(c.cfg.WindowBytes), theirs.windowBytes))
	c.credit = c.windowBytes
	c.share()
	if c.cfg.NewHandler != nil {
		c.handler, err = c.cfg.NewHandler(c)
		c.notices, _ = c.handler.(NoticeHandler)
		c.batcher, _ = c.handler.(Batcher)
	}
	return err
}

// features is what HELLO says.
func (c *Conn) features() uint64 {
	if c.cfg.Shared {
		return c.cfg.Features | featureNotices | featureShared
	}
	return c.cfg.Features | featureNotices
}

// say writes a frame of the handshake.
func (c *Conn) say(f frame) error {
	if _, err := c.nc.Write(f.append(nil)); err != nil {
		return lost(err)
	}
	return nil
}

// readHello waits for the peer's HELLO.
func (c *Conn) readHello() (hello, error) {
	for {
		f, ok, err := c.in.next()
		switch {
		case err != nil:
			return hello{}, gearsfs.ErrProtocol
		case ok && f.kind == kindHello:
			return parseHello(f.body)
		case ok && f.kind == kindGoaway:
			return hello{}, goawayError(f.body)
		case ok:
			return hello{}, gearsfs.ErrProtocol
		}
		if _, err := c.in.fill(c.nc); err != nil {
			if errors.Is(err, io.EOF) && c.in.midFrame() {
				return hello{}, gearsfs.ErrProtocol
			}
			return hello{}, lost(err)
		}
	}
}

// startTLS puts TLS over the socket where it is wanted.
func (c *Conn) startTLS(ctx context.Context, caller bool) error {
	if c.cfg.TLS == nil || c.sock.LocalAddr().Network() == "unix" {
		return nil
	}
	cfg := c.cfg.TLS.Clone()
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS13)
	over := tls.Server(c.sock, cfg)
	if caller {
		over = tls.Client(c.sock, cfg)
	}
	c.nc, c.raw = over, nil
	err := over.HandshakeContext(ctx)
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return gearsfs.ErrProtocol.Because("the peer does not speak TLS")
	}
	if _, ok := errors.AsType[*net.OpError](err); ok || errors.Is(err, io.EOF) {
		return lost(err)
	}
	return gearsfs.ErrAccess.Because("TLS: %v", err)
}

// goaway is the frame that ends a conversation; a nil err ends it in peace.
func goaway(err error) frame {
	return frame{kind: kindGoaway, body: appendError(nil, err)}
}

// goawayError returns what the peer ended the conversation with, nil in peace.
func goawayError(body []byte) error {
	code, reason, err := parseError(body)
	if err != nil || code == 0 {
		return err
	}
	return gearsfs.FromCode(code, reason)
}

// reasonBytesMax bounds the words that travel with an error's code.
const reasonBytesMax = 1024

func appendError(dst []byte, err error) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(gearsfs.CodeOf(err)))
	if err == nil {
		return dst
	}
	reason := err.Error()
	return append(dst, reason[:min(len(reason), reasonBytesMax)]...)
}

func parseError(body []byte) (gearsfs.Code, string, error) {
	if len(body) < 4 {
		return 0, "", gearsfs.ErrProtocol.Because("an error of %d bytes", len(body))
	}
	reason := body[4:]
	return gearsfs.Code(binary.BigEndian.Uint32(body)), string(reason[:min(len(reason), reasonBytesMax)]), nil
}

// lost says what an error of the socket means: gearsfs.ErrNoNode, or
// gearsfs.ErrAccess where the peer does not accept the certificate.
func lost(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return gearsfs.ErrNoNode.Because("the peer closed the connection")
	case isAlert(err):
		return gearsfs.ErrAccess.Because("TLS: %v", unwrapOp(err))
	}
	return gearsfs.ErrNoNode.Because("%v", unwrapOp(err))
}

// isAlert tells whether err is what the peer's TLS said; crypto/tls marks it so.
func isAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

// unwrapOp leaves out the addresses that the net package repeats.
func unwrapOp(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}
