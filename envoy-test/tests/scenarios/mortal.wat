;; A module that dies when it is told to, to show what Envoy does with a dead VM.
;; While it lives, it strips the metadata header from requests and, from the first one
;; on, counts seconds, as the filter does.
(module
  (import "env" "proxy_get_header_map_value"
    (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_remove_header_map_value"
    (func $remove (param i32 i32 i32) (result i32)))
  (import "env" "proxy_set_tick_period_milliseconds"
    (func $tick (param i32) (result i32)))
  (import "env" "proxy_define_metric"
    (func $define (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_increment_metric"
    (func $increment (param i32 i64) (result i32)))
  (memory (export "memory") 2)
  (global $served (mut i64) (i64.const 0))
  (data (i32.const 0) "x-kill")
  (data (i32.const 16) "x-envoy-peer-metadata")
  (data (i32.const 128) "metadata_exchange.ticks")

  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_context_create") (param i32 i32))

  ;; What the host writes is never read: one place serves for all of it.
  (func (export "proxy_on_memory_allocate") (param i32) (result i32)
    (i32.const 65536))

  ;; The counter's number is kept at 72.
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (drop (call $define (i32.const 0) (i32.const 128) (i32.const 23) (i32.const 72)))
    (drop (call $tick (i32.const 1000)))
    (i32.const 1))
  (func (export "proxy_on_tick") (param i32)
    (drop (call $increment (i32.load (i32.const 72)) (global.get $served))))

  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (global.set $served (i64.const 1))
    (if (i32.eqz (call $get (i32.const 0) (i32.const 0) (i32.const 6) (i32.const 64) (i32.const 68)))
      (then unreachable))
    (drop (call $remove (i32.const 0) (i32.const 16) (i32.const 21)))
    (i32.const 0)))
