package metrics

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fixed is a node of which the figures are given.
type fixed struct {
	figures dgm.Figures
	err     error
}

func (f *fixed) Figures() (dgm.Figures, error) { return f.figures, f.err }

// serve serves at addr and returns the server and how to get a path from it.
func serve(t *testing.T, addr transport.Addr) (*Server, func(path string) (int, string)) {
	t.Helper()
	l, err := transport.Listen(addr)
	require.NoError(t, err)
	s := Serve(l, nil, "v1.2.3", slog.New(slog.DiscardHandler))
	at := l.Address()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, at.Network, at.Address)
	}}}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		assert.NoError(t, s.Close())
	})
	return s, func(path string) (int, string) {
		t.Helper()
		resp, err := client.Get("http://node" + path)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
}

func TestReadyOnceThereIsALeader(t *testing.T) {
	s, get := serve(t, transport.Addr{Network: "tcp", Address: "127.0.0.1:0"})
	node := &fixed{}
	expect := func(status int, why string) {
		t.Helper()
		got, text := get("/readyz")
		assert.Equal(t, status, got)
		assert.Contains(t, text, why)
		got, text = get("/healthz")
		assert.Equal(t, 200, got, "the process serves whatever the node does")
		assert.Equal(t, "ok\n", text)
		_, text = get("/metrics")
		assert.Contains(t, text, map[bool]string{true: "\ngearsfs_ready 1\n", false: "\ngearsfs_ready 0\n"}[status == 200])
	}
	expect(503, "starting")
	node.figures.Role, node.figures.Leader = "voter", "b"
	s.Show(node)
	expect(503, "starting")
	s.Ready(true)
	expect(200, "ready\n")
	node.figures.Leader = ""
	expect(503, "no node that leads")
	node.figures.Leader, node.figures.Role = "b", "removed"
	expect(503, "removed")
	node.figures.Role = "voter"
	s.Ready(false)
	expect(503, "ending")
	node.err = gearsfs.ErrClosed
	s.Ready(true)
	expect(503, gearsfs.ErrClosed.Error())
}

func TestMetricsOfAnOpenNode(t *testing.T) {
	s, get := serve(t, transport.Addr{Network: "tcp", Address: "127.0.0.1:0"})
	f := dgm.Figures{Followers: []dgm.Follower{{Name: `b"\`, Active: true, LagEntries: 7, LagBytes: 4096}, {Name: "c", Snapshot: true}}}
	f.Name, f.Volume, f.Role, f.Leader, f.LeaderSince = "a", "main", "leader", "a", time.Unix(1700000000, 5e8)
	f.Commit, f.Applied, f.Term, f.Voters, f.Sessions, f.Waits, f.LogBytes = 40, 30, 3, 3, 2, 5, 1<<20
	f.Counts.Commands = map[string]file.CommandCount{"put": {Done: 12, Refused: 3}}
	f.Counts.Records = file.RecordCounts{Put: 21, Taken: 22, Leased: 23, Acked: 24, Returned: 25, Dead: 26, Discarded: 27}
	f.Timings.Sync.Counts[1], f.Timings.Sync.Counts[4], f.Timings.Sync.Sum = 2, 1, 300*time.Microsecond
	s.Show(&fixed{figures: f})
	status, text := get("/metrics")
	require.Equal(t, 200, status)
	for _, line := range []string{
		`gearsfs_build_info{goversion="go`, `gearsfs_node_info{node="a",volume="main"} 1`, "gearsfs_is_leader 1", "gearsfs_raft_term 3",
		"gearsfs_leader_change_timestamp_seconds 1.7000000005e+09", "gearsfs_raft_applied_entries_total 30", "gearsfs_apply_lag_entries 10",
		"gearsfs_sessions 2", "gearsfs_waiting_operations 5", "gearsfs_log_size_bytes 1.048576e+06",
		`gearsfs_member_lag_entries{member="b\"\\"} 7`, `gearsfs_member_lag_bytes{member="b\"\\"} 4096`,
		`gearsfs_member_reachable{member="c"} 0`, `gearsfs_member_snapshot{member="c"} 1`, "go_goroutines ",
		`gearsfs_commands_total{command="put",result="done"} 12`, `gearsfs_commands_total{command="put",result="refused"} 3`,
		"gearsfs_records_put_total 21", "gearsfs_records_taken_total 22", "gearsfs_records_leased_total 23", "gearsfs_records_acked_total 24",
		"gearsfs_records_returned_total 25", "gearsfs_records_dead_total 26", "gearsfs_records_discarded_total 27",
		`gearsfs_log_sync_duration_seconds_bucket{le="1.6e-05"} 0`, `gearsfs_log_sync_duration_seconds_bucket{le="3.2e-05"} 2`,
		`gearsfs_log_sync_duration_seconds_bucket{le="0.000128"} 2`, `gearsfs_log_sync_duration_seconds_bucket{le="0.000256"} 3`,
		`gearsfs_log_sync_duration_seconds_bucket{le="+Inf"} 3`, "gearsfs_log_sync_duration_seconds_sum 0.0003", "gearsfs_log_sync_duration_seconds_count 3",
		"gearsfs_commit_duration_seconds_count 0", "process_open_fds ",
	} {
		assert.Contains(t, text, "\n"+line)
	}
	assert.Contains(t, text, "# TYPE gearsfs_raft_applied_entries_total counter\n")
}

// Profiles show too much for everybody on the machine.
func TestProfilesOnlyOnASocket(t *testing.T) {
	_, get := serve(t, transport.Addr{Network: "tcp", Address: "127.0.0.1:0"})
	status, _ := get("/debug/pprof/goroutine?debug=1")
	assert.Equal(t, 404, status)
	dir, err := os.MkdirTemp("", "http") // short, for the socket's path
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	_, get = serve(t, transport.Addr{Network: "unix", Address: filepath.Join(dir, "s")})
	status, text := get("/debug/pprof/goroutine?debug=1")
	assert.Equal(t, 200, status)
	assert.Contains(t, text, "goroutine profile")
}
