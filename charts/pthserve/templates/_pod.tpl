{{- /* What a Deployment and a Rollout say alike. */ -}}
{{- define "pthserve.workload" -}}
progressDeadlineSeconds: {{ .Values.progressDeadlineSeconds }}
revisionHistoryLimit: {{ .Values.revisionHistoryLimit }}
{{- if not (include "pthserve.autoscaled" .) }}
replicas: {{ .Values.replicas }}
{{- end }}
{{- with .Values.minReadySeconds }}
minReadySeconds: {{ . }}
{{- end }}
selector:
  matchLabels:
    {{- include "pthserve.selectorLabels" . | nindent 4 }}
template:
  {{- include "pthserve.pod" . | nindent 2 }}
{{- end -}}

{{- /* The template of a serving pod. */ -}}
{{- define "pthserve.pod" -}}
metadata:
  labels:
    {{- mergeOverwrite (dict) .Values.commonLabels .Values.podLabels (include "pthserve.selectorLabels" . | fromYaml) | toYaml | nindent 4 }}
  annotations:
    kubectl.kubernetes.io/default-container: pthserve
    checksum/settings: {{ include "pthserve.environment" . | sha256sum }}
    {{- with mergeOverwrite (dict) .Values.commonAnnotations .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "pthserve.podSpec" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ .Values.shutdown.graceSeconds }}
  {{- if or (include "pthserve.weightsAddress" .) .Values.pack.enabled .Values.extraInitContainers }}
  initContainers:
    {{- with .Values.extraInitContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- if include "pthserve.weightsAddress" . }}
    {{- include "pthserve.fetchContainer" . | nindent 4 }}
    {{- end }}
    {{- if .Values.pack.enabled }}
    {{- include "pthserve.packContainer" . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    - name: pthserve
      image: {{ include "pthserve.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
      {{- if or (not .Values.rollout.enabled) .Values.extraEnvFrom }}
      envFrom:
        {{- if not .Values.rollout.enabled }}
        - configMapRef:
            name: {{ include "pthserve.fullname" . }}
        {{- end }}
        {{- with .Values.extraEnvFrom }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      {{- if or .Values.rollout.enabled .Values.extraEnv }}
      env:
        {{- if .Values.rollout.enabled }}
        {{- /* In the pod itself: the pods of the stable release keep their settings, also where they restart. */ -}}
        {{- range $name, $value := include "pthserve.environment" . | fromYaml }}
        - {name: {{ $name }}, value: {{ $value | quote }}}
        {{- end }}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      ports:
        - name: http
          containerPort: {{ include "pthserve.httpPort" . }}
        {{- with .Values.settings.grpcPort }}
        - name: grpc
          containerPort: {{ . }}
        {{- end }}
        {{- with .Values.settings.metricsPort }}
        - name: metrics
          containerPort: {{ . }}
        {{- end }}
      startupProbe:
        httpGet: {path: /readyz, port: http}
        {{- toYaml .Values.probes.startup | nindent 8 }}
      livenessProbe:
        httpGet: {path: /livez, port: http}
        {{- toYaml .Values.probes.liveness | nindent 8 }}
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        {{- toYaml .Values.probes.readiness | nindent 8 }}
      # Why it ended stands in the pod's status.
      terminationMessagePolicy: FallbackToLogsOnError
      {{- with .Values.shutdown.preStopSeconds }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ . }}
      {{- end }}
      resources:
        {{- $resources := deepCopy .Values.resources }}
        {{- if and .Values.gpu.enabled .Values.gpu.resourceClaims }}
        {{- $claims := list }}
        {{- range .Values.gpu.resourceClaims }}
        {{- $claims = append $claims (dict "name" .name) }}
        {{- end }}
        {{- $resources = mergeOverwrite $resources (dict "claims" (concat ($resources.claims | default list) $claims)) }}
        {{- else if .Values.gpu.enabled }}
        {{- $gpus := dict .Values.gpu.resourceName (toString .Values.gpu.count) }}
        {{- $resources = mergeOverwrite $resources (dict "limits" $gpus) }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      {{- with .Values.resizePolicy }}
      resizePolicy:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: cache, mountPath: /var/cache/pthserve}
        {{- if ne .Values.weights.source "demo" }}
        - {name: weights, mountPath: /models, readOnly: true}
        {{- end }}
        {{- if .Values.pack.enabled }}
        - {name: packs, mountPath: /packs, readOnly: true}
        - {name: pack, mountPath: /pack, readOnly: true}
        {{- end }}
        {{- if include "pthserve.publicKey" . }}
        - {name: public-key, mountPath: /run/pthserve, readOnly: true}
        {{- end }}
        {{- if .Values.apiKeys.secret }}
        - {name: api-keys, mountPath: /run/secrets/pthserve, readOnly: true}
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if and .Values.gpu.enabled .Values.gpu.resourceClaims }}
  resourceClaims:
    {{- toYaml .Values.gpu.resourceClaims | nindent 4 }}
  {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    - name: cache
      {{- if or .Values.cache.create .Values.cache.existingClaim }}
      persistentVolumeClaim:
        claimName: {{ include "pthserve.cacheClaim" . }}
      {{- else }}
      emptyDir: {}
      {{- end }}
    {{- if ne .Values.weights.source "demo" }}
    - name: weights
      {{- include "pthserve.weightsVolume" . | nindent 6 }}
    {{- end }}
    {{- if .Values.pack.enabled }}
    - name: packs
      persistentVolumeClaim:
        claimName: {{ include "pthserve.packClaim" . }}
    - name: pack
      emptyDir: {}
    {{- end }}
    {{- if include "pthserve.publicKey" . }}
    - name: public-key
      configMap:
        name: {{ .Values.weights.publicKey.configMap }}
    {{- end }}
    {{- if .Values.apiKeys.secret }}
    - name: api-keys
      secret:
        secretName: {{ .Values.apiKeys.secret }}
        items:
          - {key: {{ .Values.apiKeys.secretKey }}, path: keys}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if and .Values.gpu.enabled .Values.gpu.runtimeClassName }}
  runtimeClassName: {{ .Values.gpu.runtimeClassName }}
  {{- end }}
  {{- with mergeOverwrite (dict) .Values.nodeSelector (ternary .Values.gpu.nodeSelector dict .Values.gpu.enabled) }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with concat .Values.tolerations (ternary .Values.gpu.tolerations list .Values.gpu.enabled) (include "pthserve.unreachable" . | fromYamlArray) }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    - {{ toYaml . | nindent 6 | trim }}
      labelSelector:
        matchLabels:
          {{- include "pthserve.selectorLabels" $ | nindent 10 }}
    {{- end }}
  {{- end }}
{{- end -}}

{{- /* How long a pod stays on a node that stopped responding. A toleration of the user's for such nodes has precedence. */ -}}
{{- define "pthserve.unreachable" -}}
{{- $seconds := .Values.unreachableSeconds | int -}}
{{- range concat .Values.tolerations (ternary .Values.gpu.tolerations list .Values.gpu.enabled) -}}
{{- if or (not .key) (has .key (list "node.kubernetes.io/not-ready" "node.kubernetes.io/unreachable")) -}}
{{- $seconds = 0 -}}
{{- end -}}
{{- end -}}
{{- if $seconds -}}
{{- range list "not-ready" "unreachable" }}
- {key: node.kubernetes.io/{{ . }}, operator: Exists, effect: NoExecute, tolerationSeconds: {{ $seconds }}}
{{- end }}
{{- end -}}
{{- end -}}
