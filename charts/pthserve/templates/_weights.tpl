{{- define "pthserve.weightsVolume" -}}
{{- with .Values.weights -}}
{{- if eq .source "pvc" -}}
persistentVolumeClaim:
  claimName: {{ include "pthserve.weightsClaim" $ }}
  readOnly: true
{{- else if eq .source "configMap" -}}
configMap:
  name: {{ .configMap.name }}
{{- else if include "pthserve.weightsAddress" $ -}}
emptyDir: {{ with .download.sizeLimit }}{sizeLimit: {{ . }}}{{ else }}{}{{ end }}
{{- else if eq .source "image" -}}
image:
  reference: {{ .image.reference }}
  pullPolicy: {{ .image.pullPolicy }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Object stores, the Hub and signatures need libraries that the full image alone has. */ -}}
{{- define "pthserve.fetchContainer" -}}
{{- $address := include "pthserve.weightsAddress" . -}}
{{- $full := or (regexMatch "^(s3|gs|az|hf)://" $address) (include "pthserve.publicKey" .) -}}
- name: fetch
  image: {{ if $full }}{{ include "pthserve.imageOf" (list . "full") }}{{ else }}{{ include "pthserve.image" . }}{{ end }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  securityContext:
    {{- toYaml .Values.securityContext | nindent 4 }}
  args:
    - fetch
    - {{ $address | quote }}
    - --output={{ include "pthserve.weightsPath" . }}
    {{- with .Values.weights.sha256 }}
    - --sha256={{ . }}
    {{- end }}
    {{- with include "pthserve.publicKey" . }}
    - --require-signature={{ . }}
    {{- end }}
  {{- with .Values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if or .Values.weights.download.secret .Values.extraEnv }}
  env:
    {{- with .Values.weights.download }}
    {{- if .secret }}
    - name: PTHSERVE_FETCH_AUTHORIZATION
      valueFrom:
        secretKeyRef: {name: {{ .secret }}, key: {{ .secretKey }}}
    {{- end }}
    {{- end }}
    {{- with .Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  terminationMessagePolicy: FallbackToLogsOnError
  resources:
    requests: {cpu: 100m, memory: 128Mi, ephemeral-storage: 256Mi}
    limits: {cpu: "1", memory: 512Mi, ephemeral-storage: {{ dig "limits" "ephemeral-storage" "8Gi" .Values.resources }}}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: weights, mountPath: /models}
    {{- if include "pthserve.publicKey" . }}
    - {name: public-key, mountPath: /run/pthserve, readOnly: true}
    {{- end }}
    {{- /* Credentials that are files, and a private authority's certificate. */ -}}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "pthserve.packContainer" -}}
- name: pack
  image: {{ include "pthserve.imageOf" (list . "full") }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  securityContext:
    {{- toYaml .Values.securityContext | nindent 4 }}
  command: [/bin/sh, -c]
  args:
    - |
      {{- .Files.Get "files/pack.sh" | nindent 6 }}
  env:
    - {name: MODEL, value: {{ include "pthserve.weightsPath" . | quote }}}
    - {name: VERSION, value: {{ .Chart.AppVersion | quote }}}
    {{- with .Values.weights.sha256 }}
    - {name: PTHSERVE_SHA256, value: {{ . | quote }}}
    {{- end }}
    {{- if not (include "pthserve.weightsAddress" .) }}
    {{- with include "pthserve.publicKey" . }}
    - {name: PTHSERVE_REQUIRE_SIGNATURE, value: {{ . | quote }}}
    - {name: PTHSERVE_CACHE_DIR, value: /tmp/cache}
    {{- end }}
    {{- end }}
  terminationMessagePolicy: FallbackToLogsOnError
  resources:
    {{- toYaml .Values.pack.resources | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: weights, mountPath: /models, readOnly: true}
    - {name: packs, mountPath: /packs}
    - {name: pack, mountPath: /pack}
    {{- if include "pthserve.publicKey" . }}
    - {name: public-key, mountPath: /run/pthserve, readOnly: true}
    {{- end }}
{{- end -}}
