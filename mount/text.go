package mount

import (
	"cmp"
	"context"
	"fmt"
	"maps"
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
	at     place
	render func(ctx context.Context) (string, error)

	mu   sync.Mutex
	done bool
	text string
}

var _ handle = (*text)(nil)

func (t *text) read(s *server, _ <-chan struct{}, in *fuse.ReadIn, _ []byte) ([]byte, fuse.Status) {
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
		nodes, err := s.m.Nodes(ctx)
		if err != nil {
			return "", err
		}
		remotes, err := s.m.Remotes(ctx)
		return nodesText(nodes, remotes), err
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
	s := &i.Settings
	return fields("key", i.Key, "records", i.Records, "leased", i.Leased, "delayed", i.Delayed, "bytes", i.Bytes,
		"head", i.Head.Seq, "tail", i.Tail.Seq, "head_pos", i.Head.Pos, "tail_pos", i.Tail.Pos,
		"version", i.Version, "waiting", i.Waiting, "sealed", i.Sealed, "discarded", i.Discarded,
		"limit_records", i.Limits.Records, "limit_bytes", i.Limits.Bytes, "limit_age_seconds", s.Age.Seconds(),
		"full", s.Full, "tries", s.Tries, "type", harmless(s.Type), "id_window_seconds", s.Window().Seconds(),
		"append_only", s.AppendOnly, "store", s.Store())
}

func statusText(s gearsfs.NodeStatus) string {
	since := "-"
	if !s.LeaderSince.IsZero() {
		since = s.LeaderSince.Format(time.RFC3339)
	}
	text := fields("node", s.Name, "member", s.Member.Hex(), "volume", s.Volume, "version", s.Version,
		"role", s.Role, "leader", cmp.Or(s.Leader, "-"), "leader_since", since,
		"voters", s.Voters, "learners", s.Learners, "term", s.Term, "last", s.Last,
		"commit", s.Commit, "applied", s.Applied, "durable", s.Durable, "lag", s.Lag(),
		"log_bytes", s.LogBytes, "state_bytes", s.StateBytes,
		"bytes_total", s.Usage.BytesTotal, "bytes_free", s.Usage.BytesFree, "inodes", s.Usage.Inodes,
		"sessions", s.Sessions, "waits", s.Waits, "started", s.Started.Format(time.RFC3339))
	for _, w := range s.Warnings {
		text += fields("warning", w)
	}
	return text
}

func waitsText(waits []gearsfs.Wait, now time.Time) string {
	return table("OP\tFILE\tKEYS\tWAITING\tPASSED\tCLIENT\tNEAR", len(waits), func(i int) string {
		w := waits[i]
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%d\t%s\t%s", w.Op, harmless(w.Path), keysText(w.Keys),
			now.Sub(w.Since).Round(time.Second), w.Passed, harmless(w.Client), keysText(w.Near))
	})
}

// harmless shows control characters as question marks: a name may have them, and
// tabs and line ends would break its row.
func harmless(name string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return '?'
		}
		return r
	}, name)
}

func keysText(keys []gearsfs.Key) string {
	list := make([]string, len(keys))
	for i, k := range keys {
		list[i] = string(k)
	}
	return strings.Join(list, ",")
}

// nodesText lists the volume's nodes, as the one sees them that is asked, and
// behind them the remotes that are known by name.
func nodesText(nodes []gearsfs.NodeInfo, remotes map[string]string) string {
	names := slices.Sorted(maps.Keys(remotes))
	return table("NODE\tROLE\tSTATE\tTERM\tCOMMIT\tAPPLIED\tLAG\tBYTES\tADDRESS\tNOTE", len(nodes)+len(names), func(i int) string {
		if i >= len(nodes) {
			name := names[i-len(nodes)]
			return fmt.Sprintf("%s\tremote\t-\t-\t-\t-\t-\t-\t%s\t", name, remotes[name])
		}
		n := nodes[i]
		if !n.Reachable {
			return fmt.Sprintf("%s\t%s\taway\t-\t-\t-\t-\t-\t%s\t%s", n.Name, n.Role, n.Addrs, n.Trouble)
		}
		return fmt.Sprintf("%s\t%s\tup\t%d\t%d\t%d\t%d\t%d\t%s\t%s",
			n.Name, n.Role, n.Term, n.Commit, n.Applied, n.LagEntries, n.LagBytes, n.Addrs, n.Trouble)
	})
}

// table aligns the columns of a heading and n rows.
func table(heading string, n int, row func(int) string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, heading)
	for i := range n {
		fmt.Fprintln(w, strings.ToValidUTF8(row(i), "\ufffd")) // to a tabwriter the byte 0xff is an escape
	}
	w.Flush() // a strings.Builder takes everything
	return b.String()
}
