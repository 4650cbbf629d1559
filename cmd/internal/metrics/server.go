// Package metrics tells over HTTP how a node is: its figures for Prometheus, and
// whether it is ready. Nothing is measured until somebody asks.
package metrics

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	headerTimeout  = 5 * time.Second
	idleTimeout    = 2 * time.Minute
	headerBytesMax = 16 << 10
	scrapesMax     = 4               // at once; others get 503
	closeTimeout   = 2 * time.Second // for answers under way at the end
)

// Source is the node that is told of.
type Source interface {
	Figures() (dgm.Figures, error)
}

// Server answers /metrics, /healthz and /readyz, and on a unix socket, which only
// its user can open, /debug/pprof/. All methods are safe for concurrent use.
type Server struct {
	version string
	http    *http.Server
	owned   sync.WaitGroup // the serving goroutine; ends with Close

	mu     sync.Mutex
	source Source // nil until Show
	ready  bool
}

var _ prometheus.Collector = (*Server)(nil)

// Serve answers on l until Close. Over TCP it is HTTPS where tlsConfig is not
// nil, and asks clients for what that says. It owns l.
func Serve(l *transport.Listener, tlsConfig *tls.Config, version string, log *slog.Logger) *Server {
	s := &Server{version: version}
	local := l.Address().Network == "unix"
	s.http = &http.Server{
		Handler: s.handler(local), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: headerBytesMax,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	secure := tlsConfig != nil && !local
	if secure {
		s.http.TLSConfig = tlsConfig.Clone()
	}
	s.owned.Go(func() {
		var err error
		if secure {
			err = s.http.ServeTLS(l, "", "")
		} else {
			err = s.http.Serve(l)
		}
		if !errors.Is(err, http.ErrServerClosed) {
			log.Error("the HTTP endpoint ended", "address", l.Address().String(), "error", err)
		}
	})
	return s
}

func (s *Server) handler(local bool) http.Handler {
	// A registry of its own: the default one has the figures of libraries. The
	// collectors of package collectors would link database/sql.
	registry := prometheus.NewRegistry()
	registry.MustRegister(s,
		prometheus.NewGoCollector(),                                       //nolint:staticcheck // see above
		prometheus.NewProcessCollector(prometheus.ProcessCollectorOpts{})) //nolint:staticcheck // see above
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: scrapesMax}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if _, why := s.look(); why != "" {
			answer(w, http.StatusServiceUnavailable, why)
			return
		}
		answer(w, http.StatusOK, "ready")
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, "GearsFS "+s.version+": /metrics /healthz /readyz")
	})
	if local {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	io.WriteString(w, text+"\n") //nolint:errcheck // who asked is gone
}

// Show has the server tell of a node that is open.
func (s *Server) Show(source Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.source = source
}

// Ready says that the node serves all that it was told to, or that it ends.
func (s *Server) Ready(ready bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = ready
}

// look returns the node's figures, nil where it is not open, and why it is not
// ready, "" where it is.
func (s *Server) look() (*dgm.Figures, string) {
	s.mu.Lock()
	source, ready := s.source, s.ready
	s.mu.Unlock()
	if source == nil {
		return nil, "the node is starting"
	}
	f, err := source.Figures()
	switch {
	case err != nil:
		return nil, err.Error()
	case f.Role == "removed":
		return &f, "the node was removed from the volume"
	case f.Leader == "":
		return &f, fmt.Sprintf("no node that leads the volume can be reached (%d voters)", f.Voters)
	case !ready:
		return &f, fmt.Sprintf("the node is starting or ending: entry %d of %d is applied", f.Applied, f.Commit)
	}
	return &f, ""
}

// Close ends the server: answers under way have a moment. It waits.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) { // a profile, or a client that does not read
		err = s.http.Close()
	}
	s.owned.Wait()
	return err
}
