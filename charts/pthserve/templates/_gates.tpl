{{- /*
The gates of a rollout, as what an AnalysisTemplate specifies: (dict "root" $ "watched" false). A measurement passes, fails, or
decides nothing: without data none passes. In a step, each gate must pass so often in a row, and a gate that decides nothing for
too long pauses the rollout. Those that are watched are measured all the time, and can only fail. Failures add up, so the latency,
which varies, is not among them; nor are the requests, which cannot fail.
*/ -}}
{{- define "pthserve.gates" -}}
{{- $ := .root -}}
{{- $watched := .watched -}}
{{- $mode := . -}}
{{- with $.Values.rollout -}}
{{- $interval := int .interval -}}
{{- $window := printf "%ds" (max 60 (mul 8 $interval)) -}}
{{- $canary := printf "namespace=%q,rollouts_pod_template_hash=\"{{args.canary}}\"" $.Release.Namespace -}}
{{- $stable := $canary | replace "args.canary" "args.stable" -}}
{{- $answers := "route!~\"/(livez|readyz|healthz|metrics|v2/health/.*)\"" -}}
{{- $requests := printf "sum(pthserve_requests_total{%s,%s})" $canary $answers -}}
{{- $streak := printf "%ds" (mul $interval (max 1 (sub (int .measurements) 2))) -}}
{{- $earlier := printf "sum(pthserve_requests_total{%s,%s} offset %s)" $canary $answers $streak -}}
{{- $errors := printf "(sum(pthserve_requests_total{%s,%s,code=~\"5..\"}) or 0 * %s)" $canary $answers $requests -}}
{{- $compared := printf "sum(pthserve_rollout_comparisons_total{%s})" $canary -}}
{{- $agreed := printf "(sum(pthserve_rollout_comparisons_total{%s,result=\"agreed\"}) or 0 * %s)" $canary $compared -}}
{{- $same := printf "sum(pthserve_rollout_comparisons_total{%s,weights=\"same\"})" $canary -}}
{{- $sameAgreed := printf "(sum(pthserve_rollout_comparisons_total{%s,weights=\"same\",result=\"agreed\"}) or 0 * %s)" $canary $same -}}
{{- $others := printf "sum(pthserve_rollout_comparisons_total{%s,weights=\"other\"})" $canary -}}
{{- $labelled := printf "sum(pthserve_feedback_total{%s})" $canary -}}
{{- $correct := printf "(sum(pthserve_feedback_total{%s,result=\"correct\"}) or 0 * %s)" $canary $labelled -}}
{{- $slowest := printf "histogram_quantile(0.95, sum by (le) (rate(pthserve_request_duration_seconds_bucket{%%s,%s}[%s])))" $answers $window -}}
args:
  - name: canary
  - name: stable
metrics:
  {{- with .gates.agreement }}
  # Bounds of the share of equal answers: it is at least the floor, or surely below it.
  - name: agreement
    {{- include "pthserve.measured" $mode | nindent 4 }}
    {{- if not $watched }}
    successCondition: len(result) > 1 && result[0] >= {{ . }}
    {{- end }}
    failureCondition: len(result) > 1 && result[1] < {{ . }}
    provider:
      prometheus:
        address: {{ $.Values.rollout.prometheus }}
        query: |
          {{- include "pthserve.bounds" (list $agreed $compared $.Values.rollout.minRequests) | nindent 10 }}
  {{- end }}
  {{- with .gates.agreementSameWeights }}
  # The same where the weights are those of the stable release: the card, a setting or the image has changed. What it must
  # reach is less than what is expected, so that few images decide. A single value means other weights: nothing is demanded.
  - name: agreement-same-weights
    {{- include "pthserve.measured" $mode | nindent 4 }}
    {{- if not $watched }}
    successCondition: len(result) == 1 || len(result) > 1 && result[0] >= {{ . }}
    {{- end }}
    failureCondition: len(result) > 1 && result[1] < {{ $.Values.rollout.gates.agreementSameWeightsExpected }}
    provider:
      prometheus:
        address: {{ $.Values.rollout.prometheus }}
        query: |
          sort(
            {{- include "pthserve.bounds" (list $sameAgreed $same $.Values.rollout.minRequests) | nindent 12 }}
            or on () {{ $others }} >= {{ $.Values.rollout.minRequests }}
          )
  {{- end }}
  {{- with .gates.accuracy }}
  # The same of the answers that clients sent the true class of.
  - name: accuracy
    {{- include "pthserve.measured" $mode | nindent 4 }}
    {{- if not $watched }}
    successCondition: len(result) > 1 && result[0] >= {{ . }}
    {{- end }}
    failureCondition: len(result) > 1 && result[1] < {{ . }}
    provider:
      prometheus:
        address: {{ $.Values.rollout.prometheus }}
        query: |
          {{- include "pthserve.bounds" (list $correct $labelled $.Values.rollout.minRequests) | nindent 10 }}
  {{- end }}
  {{- with .gates.errorRate }}
  # Lower bound of the share of failed requests: above the limit, there surely are too many.
  - name: error-rate
    {{- include "pthserve.measured" $mode | nindent 4 }}
    {{- if not $watched }}
    successCondition: len(result) > 0 && result[0] <= {{ . }}
    {{- end }}
    failureCondition: len(result) > 0 && result[0] > {{ . }}
    provider:
      prometheus:
        address: {{ $.Values.rollout.prometheus }}
        query: |
          {{- include "pthserve.bound" (list $errors $requests "-") | nindent 10 }}
          and {{ $requests }} >= {{ $.Values.rollout.minRequests }}
  {{- end }}
  {{- with ternary 0 .gates.latency $watched }}
  # The 95th percentile of the canary over that of the stable release.
  - name: latency
    {{- include "pthserve.measured" $mode | nindent 4 }}
    failureLimit: 2
    {{- if not $watched }}
    successCondition: len(result) > 0 && result[0] <= {{ . }}
    {{- end }}
    failureCondition: len(result) > 0 && result[0] > {{ . }}
    provider:
      prometheus:
        address: {{ $.Values.rollout.prometheus }}
        query: |
          {{ printf $slowest $canary }}
          / {{ printf $slowest $stable }}
          and {{ $requests }} >= {{ $.Values.rollout.minRequests }}
  {{- end }}
  {{- with .gates.memory }}
  # The largest memory of a process of the canary over that of the stable release.
  - name: memory
    {{- include "pthserve.measured" $mode | nindent 4 }}
    failureLimit: 2
    {{- if not $watched }}
    successCondition: len(result) > 0 && result[0] <= {{ . }}
    {{- end }}
    failureCondition: len(result) > 0 && result[0] > {{ . }}
    provider:
      prometheus:
        address: {{ $.Values.rollout.prometheus }}
        query: |
          max(process_resident_memory_bytes{ {{- $canary -}} }) / max(process_resident_memory_bytes{ {{- $stable -}} })
  {{- end }}
  {{- if not $watched }}
  # It has answered since the second of the measurements in a row (the first, where there are two): what it has shown before the
  # step, and in its first moments, does not speak for it.
  - name: requests
    {{- include "pthserve.measured" $mode | nindent 4 }}
    successCondition: len(result) > 0 && result[0] > 0
    failureCondition: "false"
    provider:
      prometheus:
        address: {{ .prometheus }}
        query: |
          {{ $requests }} - ({{ $earlier }} or 0 * {{ $requests }})
  {{- end }}
  # No process of the canary has ended and started again.
  - name: restarts
    {{- include "pthserve.measured" $mode | nindent 4 }}
    {{- if not $watched }}
    successCondition: len(result) > 0 && result[0] == 0
    {{- end }}
    failureCondition: len(result) > 0 && result[0] > 0
    provider:
      prometheus:
        address: {{ .prometheus }}
        query: sum(changes(process_start_time_seconds{ {{- $canary -}} }[1h]))
{{- end -}}
{{- end -}}

{{- /* How a gate is measured, the same for all: (dict "root" $ "watched" false). */ -}}
{{- define "pthserve.measured" -}}
{{- with .root.Values.rollout -}}
interval: {{ .interval }}s
{{- if not $.watched }}
consecutiveSuccessLimit: {{ .measurements }}
inconclusiveLimit: {{ .undecided }}
count: {{ add .measurements .undecided }}
{{- end }}
{{- end -}}
{{- end -}}

{{- /*
PromQL for a bound of a share: (list $part $whole "-") for the lower one of two counts, "+" for the upper one. It is the Wilson
score interval at 95 %, as in pthserve_rollout_agreement, and has no value where nothing was counted.
*/ -}}
{{- define "pthserve.bound" -}}
{{- $part := index . 0 -}}
{{- $whole := index . 1 -}}
({{ $part }} + 1.9208 {{ index . 2 }} 1.96 * sqrt({{ $part }} * (1 - {{ $part }} / {{ $whole }}) + 0.9604))
/ ({{ $whole }} + 3.8416)
{{- end -}}

{{- /* Both bounds, the lower one first, once enough was counted: (list $part $whole $least). */ -}}
{{- define "pthserve.bounds" -}}
{{- $part := index . 0 -}}
{{- $whole := index . 1 -}}
sort((
{{- range $i, $sign := list "-" "+" }}
  {{ if $i }}or {{ end }}label_replace(
    {{- include "pthserve.bound" (list $part $whole $sign) | nindent 4 }}, "bound", "{{ $sign }}", "", "")
{{- end }}
) and on () {{ $whole }} >= {{ index . 2 }})
{{- end -}}
