package mount

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/gearsfs/gearsfs"
)

// text is an open file of the control tree that describes something. It is
// rendered by the first read and by each that begins at its start again.
type text struct {
	render func(ctx context.Context) (string, error)

	mu   sync.Mutex
	done bool
	text string
}

var _ handle = (*text)(nil)

func (t *text) read(s *server, _ <-chan struct{}, in *fuse.ReadIn) ([]byte, fuse.Status) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.done || in.Offset == 0 {
		var err error
		if t.text, err = t.render(s.ctx); err != nil {
			return nil, gone(err)
		}
		t.done = true
	}
	if in.Offset >= uint64(len(t.text)) {
		return nil, fuse.OK
	}
	rest := t.text[in.Offset:]
	return []byte(rest[:min(len(rest), int(in.Size))]), fuse.OK
}

func (t *text) write(*server, <-chan struct{}, *fuse.WriteIn, []byte) (uint32, fuse.Status) {
	return 0, fuse.EBADF
}

func (t *text) flush(*server, *fuse.FlushIn) fuse.Status { return fuse.OK }

func (t *text) release(*server) {}

// renderer returns what writes a place's text.
func (s *server) renderer(p place) func(context.Context) (string, error) {
	switch p.kind {
	case kindInfo:
		return func(context.Context) (string, error) {
			info, err := s.streamAt(p)
			return infoText(info), err
		}
	case kindStatus:
		return func(ctx context.Context) (string, error) {
			st, err := s.m.Status(ctx)
			return statusText(st), err
		}
	case kindWaits:
		return func(ctx context.Context) (string, error) {
			waits, err := s.m.Waits(ctx)
			return waitsText(waits, time.Now()), err
		}
	}
	return func(ctx context.Context) (string, error) {
		st, err := s.m.Status(ctx)
		if err != nil {
			return "", err
		}
		remotes, err := s.m.Remotes(ctx)
		return nodesText(st, remotes), err
	}
}

// fields writes `name value` lines.
func fields(pairs ...any) string {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		fmt.Fprintf(&b, "%v %v\n", pairs[i], pairs[i+1])
	}
	return b.String()
}

func infoText(i gearsfs.StreamInfo) string {
	return fields("key", i.Key, "records", i.Records, "leased", i.Leased, "bytes", i.Bytes,
		"head", i.Head.Seq, "tail", i.Tail.Seq, "head_pos", i.Head.Pos, "tail_pos", i.Tail.Pos,
		"version", i.Version, "waiting", i.Waiting, "sealed", i.Sealed,
		"limit_records", i.Limits.Records, "limit_bytes", i.Limits.Bytes)
}

func statusText(s gearsfs.NodeStatus) string {
	text := fields("node", s.Name, "volume", s.Volume, "version", s.Version, "role", s.Role, "leader", s.Leader,
		"term", s.Term, "commit", s.Commit, "applied", s.Applied, "durable", s.Durable,
		"log_bytes", s.LogBytes, "state_bytes", s.StateBytes, "sessions", s.Sessions, "waits", s.Waits,
		"bytes_total", s.Usage.BytesTotal, "bytes_free", s.Usage.BytesFree, "inodes", s.Usage.Inodes,
		"started", s.Started.Format(time.RFC3339))
	for _, w := range s.Warnings {
		text += fields("warning", w)
	}
	return text
}

func waitsText(waits []gearsfs.Wait, now time.Time) string {
	return table("OP\tFILE\tKEYS\tWAITING\tPASSED\tCLIENT\tNEAR", len(waits), func(i int) string {
		w := waits[i]
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%d\t%s\t%s", w.Op, w.Path, keysText(w.Keys),
			now.Sub(w.Since).Round(time.Second), w.Passed, w.Client, keysText(w.Near))
	})
}

func keysText(keys []gearsfs.Key) string {
	list := make([]string, len(keys))
	for i, k := range keys {
		list[i] = string(k)
	}
	return strings.Join(list, ",")
}

func nodesText(s gearsfs.NodeStatus, remotes map[string]string) string {
	type line struct{ name, role, address string }
	lines := []line{{s.Name, s.Role, ""}}
	for name, address := range remotes {
		lines = append(lines, line{name, "remote", address})
	}
	slices.SortFunc(lines[1:], func(a, b line) int { return strings.Compare(a.name, b.name) })
	return table("NODE\tROLE\tADDRESS", len(lines), func(i int) string {
		return lines[i].name + "\t" + lines[i].role + "\t" + lines[i].address
	})
}

// table aligns the columns of a heading and n rows.
func table(heading string, n int, row func(int) string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, heading)
	for i := range n {
		fmt.Fprintln(w, row(i))
	}
	w.Flush() // a strings.Builder takes everything
	return b.String()
}
