package main

import (
	"crypto/tls"
	"log/slog"

	"github.com/gearsfs/gearsfs/cmd/internal/metrics"
	"github.com/gearsfs/gearsfs/cmd/internal/node"
)

// teller is the HTTP endpoint of --http, or without it nothing.
type teller struct{ server *metrics.Server }

// tell listens at --http before any data are touched, so that an address that
// is taken is found at once, and answers also while the node starts.
func tell(s settings, tlsConfig *tls.Config, log *slog.Logger) (*teller, error) {
	if s.http == "" {
		return &teller{}, nil
	}
	l, err := node.ListenHTTP(s.http, tlsConfig, s.insecure)
	if err != nil {
		return nil, err
	}
	log.Info("HTTP", "address", l.Address().String())
	return &teller{metrics.Serve(l, tlsConfig, node.Version(), log)}, nil
}

func (t *teller) show(n *node.Node) {
	if t.server != nil {
		t.server.Show(n)
	}
}

func (t *teller) ready(ready bool) {
	if t.server != nil {
		t.server.Ready(ready)
	}
}

func (t *teller) close() error {
	if t.server == nil {
		return nil
	}
	return t.server.Close()
}
