package transport

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// ServerConnsMax bounds the connections that a Server has open; further ones
// are closed at once.
const ServerConnsMax = 4096

// Server accepts connections. What it serves with is said by Config.NewHandler.
type Server struct {
	ln   net.Listener
	cfg  Config
	stop context.CancelFunc
	wait sync.WaitGroup // the accepting goroutine, and one per connection

	mu   sync.Mutex
	open int   // connections, handshakes included
	err  error // why accepting ended, nil by Close
}

// Serve accepts connections on ln, which it owns from then on, until Close.
func Serve(ln net.Listener, cfg Config) (*Server, error) {
	if _, err := cfg.withDefaults(); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{ln: ln, cfg: cfg, stop: stop}
	s.wait.Go(func() { s.accept(ctx) })
	return s, nil
}

// Close stops accepting, gives up handshakes, and closes every connection as
// Conn.Close does, all at once. It waits for that, is idempotent, and returns
// why accepting had ended before, if it had.
func (s *Server) Close() error {
	s.stop()
	cerr := s.ln.Close()
	if errors.Is(cerr, net.ErrClosed) {
		cerr = nil
	}
	s.wait.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.err, cerr)
}

// acceptRetryMax is the longest pause after accept(2) has failed, as it does
// while the process has no file descriptor left.
const acceptRetryMax = time.Second

func (s *Server) accept(ctx context.Context) {
	pause := time.Duration(0)
	for {
		sock, err := s.ln.Accept()
		switch {
		case err == nil:
			pause = 0
			s.mu.Lock()
			admitted := s.open < ServerConnsMax
			if admitted {
				s.open++
			}
			s.mu.Unlock()
			if admitted {
				s.wait.Go(func() { s.serve(ctx, sock) })
			} else {
				sock.Close() //nolint:errcheck // it was never used
			}
			continue
		case ctx.Err() != nil:
			return
		case errors.Is(err, net.ErrClosed):
			s.mu.Lock()
			s.err = err
			s.mu.Unlock()
			return
		}
		pause = min(max(2*pause, 5*time.Millisecond), acceptRetryMax)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// serve opens one connection and waits until it has ended.
func (s *Server) serve(ctx context.Context, sock net.Conn) {
	defer func() {
		s.mu.Lock()
		s.open--
		s.mu.Unlock()
	}()
	c, err := Accept(ctx, sock, s.cfg)
	if err != nil {
		return // the peer was told; NewHandler knows whom it refused
	}
	select {
	case <-c.Done():
	case <-ctx.Done():
		c.Close() //nolint:errcheck // says that calls were cut, which the peer knows
	}
}
